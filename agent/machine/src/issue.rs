//! Makes join tokens, with the rights of whoever runs the command.
use std::time::Duration;

use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, Service, ServiceAccount},
    },
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use time::OffsetDateTime;
use undermesh_identity::Secret;
use undermesh_model::{Identity, IdentityError, TrustDomain};

use crate::{
    cluster::{Cluster, ClusterError, in_time},
    entry::Key,
    group::WorkloadGroup,
    join::JoinToken,
};

/// The audience of tokens for the control plane, as Istio has it.
const AUDIENCE: &str = "istio-ca";
/// The ConfigMap with the roots of the mesh, in every namespace, and its key.
const ROOTS: (&str, &str) = ("istio-ca-root-cert", "root-cert.pem");
/// The Service of the controller, and its port for nodes.
const CONTROLLER: (&str, u16) = ("undermesh", 15012);

/// What a join token is made of.
#[derive(Clone, Debug)]
pub struct Order {
    /// The WorkloadGroup.
    pub group: Key,
    /// How long the token may be used; Kubernetes allows no less than ten minutes.
    pub lifetime: Duration,
    /// Where machines reach the controller; without it, the address of its load balancer.
    pub controller: Option<String>,
    /// The controller's namespace.
    pub system: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
}

/// Why there is no join token.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// No group.
    #[error(
        "there is no WorkloadGroup {0}; create one, for example:\n\n{example}",
        example = example(.0)
    )]
    NoGroup(Key),
    /// No service account.
    #[error(
        "there is no service account {namespace}/{name}, which the WorkloadGroup names; create it with 'kubectl create serviceaccount {name} -n {namespace}'"
    )]
    NoAccount {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// No roots.
    #[error(
        "the ConfigMap {}/{} holds no roots; check that the controller runs and leads", .0, ROOTS.0
    )]
    NoRoots(String),
    /// No address.
    #[error(
        "the Service {}/{} has no address outside the cluster; give one that leads to its port {} with --controller https://ADDRESS:PORT, or make the Service a load balancer", .0, CONTROLLER.0, CONTROLLER.1
    )]
    NoController(String),
    /// The API server gave no token.
    #[error("the API server made no token; check its log")]
    NoToken,
    /// The account is no identity.
    #[error("the group's account is no identity: {0}")]
    Identity(#[from] IdentityError),
    /// The API server.
    #[error(
        "{0}; check the address, and your rights in the namespace (get workloadgroups and configmaps, create serviceaccounts/token)"
    )]
    Cluster(#[from] ClusterError),
}

/// Makes a join token.
///
/// # Errors
/// When something is missing; the error says what to do.
pub async fn create(client: Client, order: &Order) -> Result<JoinToken, IssueError> {
    let cluster = Cluster::new(client.clone());
    let Key { namespace, name } = &order.group;
    let group = cluster.group(namespace, name).await?;
    let group = group.ok_or_else(|| IssueError::NoGroup(order.group.clone()))?;
    let controller = match &order.controller {
        Some(controller) => controller.clone(),
        None => load_balancer(&client, &order.system).await?,
    };
    let roots = roots(&client, namespace).await?;
    let (token, expires) = account_token(&client, &group, order.lifetime).await?;
    Ok(JoinToken {
        controller,
        controller_name: format!("{}.{}.svc", CONTROLLER.0, order.system),
        roots,
        token,
        expires,
        group: group.name,
        identity: Identity::new(
            order.trust_domain.clone(),
            namespace,
            &group.service_account,
        )?,
        cluster: order.cluster.clone(),
        network: group.network,
        probe: group.probe,
    })
}

async fn load_balancer(client: &Client, system: &str) -> Result<String, IssueError> {
    let services: Api<Service> = Api::namespaced(client.clone(), system);
    let service = in_time(services.get_opt(CONTROLLER.0)).await?;
    let status = service.and_then(|service| service.status?.load_balancer);
    let ingress = status.and_then(|status| status.ingress?.into_iter().next());
    let host = ingress.and_then(|ingress| ingress.ip.or(ingress.hostname));
    let host = host.filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| IssueError::NoController(system.to_owned()))?;
    let port = CONTROLLER.1;
    Ok(match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    })
}

async fn roots(client: &Client, namespace: &str) -> Result<String, IssueError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = in_time(maps.get_opt(ROOTS.0)).await?;
    let roots = map.and_then(|map| map.data?.remove(ROOTS.1));
    roots.ok_or_else(|| IssueError::NoRoots(namespace.to_owned()))
}

async fn account_token(
    client: &Client,
    group: &WorkloadGroup,
    lifetime: Duration,
) -> Result<(Secret, OffsetDateTime), IssueError> {
    let (namespace, name) = (&group.namespace, &group.service_account);
    if !Cluster::new(client.clone())
        .has_account(namespace, name)
        .await?
    {
        return Err(IssueError::NoAccount {
            namespace: namespace.clone(),
            name: name.clone(),
        });
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            expiration_seconds: i64::try_from(lifetime.as_secs()).ok(),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let params = PostParams::default();
    let answer = in_time(accounts.create_token_request(name, &params, &request)).await?;
    let status = answer.status.ok_or(IssueError::NoToken)?;
    let expires = moment(status.expiration_timestamp.0).ok_or(IssueError::NoToken)?;
    Ok((Secret::new(status.token), expires))
}

fn moment(time: Timestamp) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(time.as_second()).ok()
}

fn example(group: &Key) -> String {
    let Key { namespace, name } = group;
    format!(
        "apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata:
  name: {name}
  namespace: {namespace}
spec:
  metadata:
    labels: {{app: {name}}}
  template:
    serviceAccount: {name}
  probe:
    httpGet: {{path: /healthz, port: 8080}}
"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use undermesh_identity::{certificate, testing::TestMesh};
    use undermesh_kubernetes::testing::ApiServer;

    use super::*;
    use crate::group::tests::object;

    fn order() -> Order {
        Order {
            group: Key {
                namespace: "shop".to_owned(),
                name: "vm".to_owned(),
            },
            lifetime: Duration::from_secs(3600),
            controller: None,
            system: "istio-system".to_owned(),
            cluster: "Kubernetes".to_owned(),
            trust_domain: TrustDomain::cluster_local(),
        }
    }

    #[tokio::test]
    async fn each_missing_part_is_named_until_there_is_a_token() {
        let api = ApiServer::start().await;
        api.install_istio();
        for namespace in ["shop", "istio-system"] {
            api.put_namespace(namespace, &[]);
        }
        let failure = async || {
            create(api.client(), &order())
                .await
                .unwrap_err()
                .to_string()
        };
        assert!(failure().await.contains("kind: WorkloadGroup"));
        api.put(object());
        assert!(failure().await.contains("no address outside"));
        api.put(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "undermesh", "namespace": "istio-system" },
            "spec": {},
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } },
        }));
        assert!(failure().await.contains("holds no roots"));
        let pem = certificate::to_pem(TestMesh::new("cluster.local").roots());
        api.put(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "istio-ca-root-cert", "namespace": "shop" },
            "data": { "root-cert.pem": pem },
        }));
        assert!(
            failure()
                .await
                .contains("kubectl create serviceaccount stock -n shop")
        );
        api.put(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": "stock", "namespace": "shop" },
        }));
        let token = create(api.client(), &order()).await.unwrap();
        assert_eq!(token.controller, "https://192.0.2.1:15012");
        assert_eq!(
            token.identity.to_string(),
            "spiffe://cluster.local/ns/shop/sa/stock"
        );
        assert!(token.expires > OffsetDateTime::now_utc());
        let read = token.encode().unwrap().parse();
        assert_eq!(read, Ok(token));
    }
}
