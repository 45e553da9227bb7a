//! The CA's Secrets on an API server in the process: made once, followed, repaired and rotated.
use std::time::SystemTime;

use k8s_openapi::ByteString;
use serde_json::Value;
use tokio::{task::AbortHandle, time::timeout};
use undermesh_identity::{
    certificate::to_pem,
    material::{CA_CERTIFICATE, CA_KEY, ROOT_CERTIFICATE},
    testing::ManualClock,
};
use undermesh_kubernetes::testing::ApiServer;

use super::*;
use crate::{fixtures::request, root::ROTATE_ANNOTATION, rotation::MARGIN};

const NAMESPACE: &str = "undermesh-system";
const PATIENCE: Duration = Duration::from_secs(10);

struct Bench {
    api: ApiServer,
    clock: Arc<ManualClock>,
}

/// A controller that runs.
struct Replica {
    clock: Arc<ManualClock>,
    authority: Arc<LiveAuthority>,
    status: watch::Receiver<RootStatus>,
    role: watch::Sender<Role>,
    task: AbortHandle,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bench {
    async fn new() -> Self {
        let api = ApiServer::start().await;
        api.put_namespace(NAMESPACE, &[]);
        Self {
            api,
            clock: ManualClock::new(SystemTime::now()),
        }
    }

    async fn open(&self) -> Result<Keeper, KeeperError> {
        let options = KeeperOptions {
            namespace: NAMESPACE.to_owned(),
            trust_domain: TrustDomain::cluster_local(),
            lifetimes: Lifetimes::default(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
        };
        Keeper::open(self.api.client(), options).await
    }

    async fn replica(&self, role: Role) -> Replica {
        let keeper = self.open().await.unwrap();
        let (role, roles) = watch::channel(role);
        Replica {
            clock: Arc::clone(&self.clock),
            authority: keeper.authority(),
            status: keeper.status(),
            task: tokio::spawn(keeper.run(roles)).abort_handle(),
            role,
        }
    }

    fn put(&self, secret: &Secret) {
        self.api.put(serde_json::to_value(secret).unwrap());
    }

    fn stored(&self) -> Secret {
        let stored = self.api.get("Secret", NAMESPACE, OWN_SECRET).unwrap();
        serde_json::from_value(stored).unwrap()
    }

    async fn wait_for_phase(&self, phase: &'static str) -> Roots {
        let in_phase = move |stored: &Value| {
            let secret: Secret = serde_json::from_value(stored.clone()).unwrap();
            root::read(&secret).is_ok_and(|roots| roots.phase.label() == phase)
        };
        self.api
            .wait_for("Secret", NAMESPACE, OWN_SECRET, in_phase)
            .await;
        root::read(&self.stored()).unwrap()
    }
}

impl Replica {
    /// Wakes the loop as a renewed Lease does, so that it looks at the clock.
    fn lead(&self) {
        self.role.send_replace(Role::Leader);
    }

    /// Waits until this replica goes by these roots.
    async fn wait_for(&self, roots: &Roots) {
        let mut changes = self.authority.subscribe();
        let bundle = normal(&roots.bundle());
        let wait = async {
            while self.authority.roots_pem() != bundle {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, wait).await.unwrap();
    }

    /// Under which root it signs now.
    fn signer(&self) -> String {
        let issued = self.authority.sign(request("ns/shop/sa/cart")).unwrap();
        let now = self.clock.now().duration_since(SystemTime::UNIX_EPOCH);
        let now = rustls_pki_types::UnixTime::since_unix_epoch(now.unwrap());
        let mut roots = issued.roots.iter();
        let signs = |root: &&rustls_pki_types::CertificateDer<'static>| {
            let mut one = rustls::RootCertStore::empty();
            one.add((*root).clone()).unwrap();
            let leaf = rustls::server::ParsedCertificate::try_from(&issued.leaf).unwrap();
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &leaf,
                &one,
                &issued.intermediates,
                now,
                rustls::crypto::aws_lc_rs::default_provider()
                    .signature_verification_algorithms
                    .all,
            )
            .is_ok()
        };
        to_pem(roots.find(signs))
    }
}

/// The same certificates in our own spelling of PEM.
fn normal(bundle: &str) -> String {
    to_pem(&undermesh_identity::certificate::parse_pem(bundle.as_bytes()).unwrap())
}

fn new_roots(now: SystemTime) -> Roots {
    let made = NewRoot::make(&TrustDomain::cluster_local(), now).unwrap();
    Roots::steady(made.try_into().unwrap())
}

fn plugged(roots: &Roots) -> Secret {
    let mut secret = Secret::default();
    secret.metadata.name = Some(PLUGGED_SECRET.to_owned());
    secret.metadata.namespace = Some(NAMESPACE.to_owned());
    let values = [
        (CA_CERTIFICATE, roots.signing.certificate.as_str()),
        (CA_KEY, &roots.signing.key),
        (ROOT_CERTIFICATE, &roots.signing.certificate),
    ];
    let values = values.map(|(key, value)| (key.to_owned(), ByteString(value.into())));
    secret.data = Some(values.into());
    secret
}

#[tokio::test]
async fn replicas_that_start_at_once_end_with_one_root() {
    let bench = Bench::new().await;
    let keepers = futures::future::join_all((0..4).map(|_| bench.open())).await;
    let roots: Vec<String> = keepers
        .into_iter()
        .map(|keeper| keeper.unwrap().authority().roots_pem())
        .collect();
    assert!(roots.iter().all(|root| *root == roots[0]));
    let stored = bench.stored();
    assert_eq!(stored.type_.as_deref(), Some("istio.io/ca-root"));
    assert_eq!(normal(&root::read(&stored).unwrap().bundle()), roots[0]);
}

#[tokio::test]
async fn the_root_that_istiod_made_is_used() {
    let bench = Bench::new().await;
    let roots = new_roots(SystemTime::now());
    let mut secret = root::new_secret(&roots, NAMESPACE);
    let data = secret.data.as_mut().unwrap();
    data.remove(ROOT_CERTIFICATE);
    data.insert("cert-chain.pem".to_owned(), ByteString(Vec::new()));
    bench.put(&secret);
    let replica = bench.replica(Role::Leader).await;
    assert_eq!(replica.signer(), normal(&roots.signing.certificate));
}

#[tokio::test]
async fn a_plugged_in_intermediate_goes_first_and_its_change_is_followed() {
    let bench = Bench::new().await;
    let replica = bench.replica(Role::Leader).await;
    let own = root::read(&bench.stored()).unwrap();
    let (one, two) = (new_roots(SystemTime::now()), new_roots(SystemTime::now()));
    for roots in [&one, &two] {
        bench.put(&plugged(roots));
        replica.wait_for(roots).await;
        assert_eq!(replica.status.borrow().secret, PLUGGED_SECRET);
    }
    assert_eq!(
        bench.open().await.unwrap().authority().roots_pem(),
        normal(&two.bundle())
    );
    bench.api.delete("Secret", NAMESPACE, PLUGGED_SECRET);
    replica.wait_for(&own).await;
}

#[tokio::test]
async fn without_a_secret_of_our_own_a_plugged_in_intermediate_is_enough() {
    let bench = Bench::new().await;
    bench.put(&plugged(&new_roots(SystemTime::now())));
    let replica = bench.replica(Role::Leader).await;
    assert_eq!(replica.status.borrow().phase, None);
    assert!(bench.api.get("Secret", NAMESPACE, OWN_SECRET).is_none());
    bench.api.delete("Secret", NAMESPACE, PLUGGED_SECRET);
    let roots = bench.wait_for_phase("steady").await;
    replica.wait_for(&roots).await;
}

#[tokio::test]
async fn a_deleted_root_is_put_back() {
    let bench = Bench::new().await;
    let _replica = bench.replica(Role::Leader).await;
    let before = root::read(&bench.stored()).unwrap();
    bench.api.wait_for_watches("secrets", 2).await;
    bench.api.delete("Secret", NAMESPACE, OWN_SECRET);
    assert_eq!(bench.wait_for_phase("steady").await, before);
}

#[tokio::test]
async fn a_broken_secret_is_reported_and_the_last_good_root_stays() {
    let bench = Bench::new().await;
    let mut replica = bench.replica(Role::Follower).await;
    let before = replica.authority.roots_pem();
    let mut broken = bench.stored();
    let data = broken.data.as_mut().unwrap();
    let other = new_roots(SystemTime::now()).signing.key.as_bytes().to_vec();
    data.insert(CA_KEY.to_owned(), ByteString(other));
    bench.put(&broken);
    let told = replica.status.wait_for(|status| status.problem.is_some());
    let told = timeout(PATIENCE, told).await.unwrap().unwrap().clone();
    let problem = told.problem.unwrap();
    assert!(
        problem.contains("Secret undermesh-system/istio-ca-secret/ca-key.pem is not the key of"),
        "{problem}"
    );
    assert!(!problem.contains("PRIVATE"));
    assert_eq!(replica.authority.roots_pem(), before);
    assert!(bench.open().await.is_err());
}

#[tokio::test]
async fn a_rotation_goes_on_under_another_leader_and_all_replicas_agree() {
    let bench = Bench::new().await;
    let (one, two) = (
        bench.replica(Role::Leader).await,
        bench.replica(Role::Follower).await,
    );
    let old = normal(&root::read(&bench.stored()).unwrap().signing.certificate);
    let mut asked = bench.stored();
    let annotations = asked.metadata.annotations.get_or_insert_default();
    annotations.insert(ROTATE_ANNOTATION.to_owned(), "now".to_owned());
    bench.put(&asked);

    let introducing = bench.wait_for_phase("introducing").await;
    for replica in [&one, &two] {
        replica.wait_for(&introducing).await;
        assert_eq!(replica.signer(), old);
    }
    assert_eq!(root::wish(&bench.stored()), crate::rotation::Wish::InTime);

    let step = Lifetimes::default().max + MARGIN + Duration::from_secs(2);
    bench.clock.advance(step);
    drop(one);
    two.lead();
    let retiring = bench.wait_for_phase("retiring").await;
    two.wait_for(&retiring).await;
    let new = normal(&retiring.signing.certificate);
    assert_eq!(two.signer(), new);
    assert_ne!(new, old);

    bench.clock.advance(step);
    let three = bench.replica(Role::Leader).await;
    let steady = bench.wait_for_phase("steady").await;
    for replica in [&two, &three] {
        replica.wait_for(&steady).await;
        assert_eq!(replica.authority.roots_pem(), new);
    }
}

#[tokio::test]
async fn a_follower_writes_nothing() {
    let bench = Bench::new().await;
    bench.open().await.unwrap();
    let mut asked = bench.stored();
    let annotations = asked.metadata.annotations.get_or_insert_default();
    annotations.insert(ROTATE_ANNOTATION.to_owned(), "now".to_owned());
    let follower = bench.replica(Role::Follower).await;
    bench.api.wait_for_watches("secrets", 2).await;
    bench.put(&asked);
    let other = plugged(&new_roots(SystemTime::now()));
    bench.put(&other);
    // The change of the second Secret shows that the loop has passed the first.
    let mut status = follower.status.clone();
    let plugged_in = status.wait_for(|status| status.secret == PLUGGED_SECRET);
    timeout(PATIENCE, plugged_in).await.unwrap().unwrap();
    assert_eq!(bench.api.requests("PUT ").len(), 0);
}
