//! Who a client says that it is, held against who it is.
use std::sync::Arc;

use prost_types::{Struct, value::Kind as Value};
use undermesh_identity::Caller;

use crate::wire::discovery;

/// Longest id or metadata value that is taken, in bytes.
const MAX_BYTES: usize = 1024;
/// The first part of a node proxy's id.
const PROXY_TYPE: &str = "ztunnel";

/// A node proxy, by its id `ztunnel~<address>~<pod>.<namespace>~<domain>` and its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The id as the client gave it.
    pub id: Arc<str>,
    /// The proxy's pod.
    pub pod: Arc<str>,
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// The Kubernetes node it serves (metadata `NODE_NAME`); empty when it does not say.
    pub name: Arc<str>,
    /// The proxy's version (metadata `ISTIO_VERSION`); empty when it does not say.
    pub version: Arc<str>,
}

/// Why a client is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The first request names no node.
    #[error("the first request names no node; send node.id with it")]
    Missing,
    /// The id has not the form of a node proxy's.
    #[error(
        "node.id '{0}' is not of the form ztunnel~<address>~<pod>.<namespace>~<domain>; only node proxies are served here"
    )]
    Id(String),
    /// A machine's address is missing, or none.
    #[error("INSTANCE_IPS is '{0}'; a machine names its IP address there, with --address")]
    Address(String),
    /// A text is too long.
    #[error("{0} has {1} bytes; {MAX_BYTES} are allowed")]
    Length(&'static str, usize),
    /// The id names another namespace than the token.
    #[error(
        "node.id is of namespace '{claimed}', the token of '{proven}'; call with the token of the proxy's own pod"
    )]
    Namespace {
        /// What the id says.
        claimed: String,
        /// What the token says.
        proven: String,
    },
    /// The id names another pod than the token.
    #[error(
        "node.id is of pod '{claimed}', the token of '{proven}'; call with the token of the proxy's own pod"
    )]
    Pod {
        /// What the id says.
        claimed: String,
        /// What the token says.
        proven: String,
    },
    /// The metadata names another service account than the token.
    #[error(
        "the node is of service account '{claimed}', the token of '{proven}'; call with the token of the proxy's own pod"
    )]
    ServiceAccount {
        /// What the metadata says.
        claimed: String,
        /// What the token says.
        proven: String,
    },
}

impl Node {
    /// Reads what a client says and checks it against what its token proves: the namespace, the pod if the token
    /// is bound to one, and the service account if the client names one.
    ///
    /// # Errors
    /// When it is malformed, of another type, or of somebody else.
    pub fn verify(node: Option<&discovery::Node>, caller: &Caller) -> Result<Self, NodeError> {
        let node = node.ok_or(NodeError::Missing)?;
        let this = Self::parse(node)?;
        let metadata = node.metadata.as_ref();
        let claimed = |key, own: &str| match text(metadata, key)? {
            "" => Ok(own.to_owned()),
            claimed => Ok(claimed.to_owned()),
        };
        for claimed in [
            this.namespace.to_string(),
            claimed("NAMESPACE", &this.namespace)?,
        ] {
            if claimed != caller.namespace {
                let proven = caller.namespace.clone();
                return Err(NodeError::Namespace { claimed, proven });
            }
        }
        if let Some(pod) = &caller.pod
            && *pod.name != *this.pod
        {
            let (claimed, proven) = (this.pod.to_string(), pod.name.clone());
            return Err(NodeError::Pod { claimed, proven });
        }
        let account = claimed("SERVICE_ACCOUNT", &caller.service_account)?;
        if account != caller.service_account {
            let (claimed, proven) = (account, caller.service_account.clone());
            return Err(NodeError::ServiceAccount { claimed, proven });
        }
        Ok(this)
    }

    fn parse(node: &discovery::Node) -> Result<Self, NodeError> {
        if node.id.len() > MAX_BYTES {
            return Err(NodeError::Length("node.id", node.id.len()));
        }
        let malformed = || NodeError::Id(node.id.clone());
        let parts: Vec<&str> = node.id.split('~').collect();
        let [PROXY_TYPE, _, name, _] = parts[..] else {
            return Err(malformed());
        };
        // Names of pods hold dots, names of namespaces do not.
        let (pod, namespace) = name.rsplit_once('.').ok_or_else(malformed)?;
        if namespace.is_empty() {
            return Err(malformed());
        }
        let metadata = node.metadata.as_ref();
        Ok(Self {
            id: Arc::from(&*node.id),
            pod: Arc::from(pod),
            namespace: Arc::from(namespace),
            name: Arc::from(text(metadata, "NODE_NAME")?),
            version: Arc::from(text(metadata, "ISTIO_VERSION")?),
        })
    }
}

/// A text of the metadata; empty when it is not there.
pub(super) fn text<'a>(
    metadata: Option<&'a Struct>,
    key: &'static str,
) -> Result<&'a str, NodeError> {
    let value = metadata.and_then(|metadata| metadata.fields.get(key)?.kind.as_ref());
    match value {
        Some(Value::StringValue(text)) if text.len() > MAX_BYTES => {
            Err(NodeError::Length(key, text.len()))
        }
        Some(Value::StringValue(text)) => Ok(text),
        _ => Ok(""),
    }
}

#[cfg(test)]
mod tests {
    use undermesh_identity::BoundPod;

    use super::*;
    use crate::server::fixture;

    fn caller(namespace: &str, pod: Option<&str>) -> Caller {
        Caller {
            namespace: namespace.to_owned(),
            service_account: "ztunnel".to_owned(),
            pod: pod.map(|name| BoundPod {
                name: name.to_owned(),
                uid: "1".to_owned(),
            }),
        }
    }

    #[test]
    fn the_proxy_of_the_token_is_let_in() {
        let node = fixture::node("istio-system", "ztunnel.7-x", "n1");
        for pod in [None, Some("ztunnel.7-x")] {
            let read = Node::verify(Some(&node), &caller("istio-system", pod)).unwrap();
            assert_eq!((&*read.pod, &*read.name), ("ztunnel.7-x", "n1"));
        }
    }

    #[test]
    fn nobody_speaks_for_another_namespace_pod_or_account() {
        let node = fixture::node("istio-system", "ztunnel-1", "n1");
        let refused =
            |node: &discovery::Node, caller| Node::verify(Some(node), &caller).unwrap_err();
        assert!(matches!(
            refused(&node, caller("shop", None)),
            NodeError::Namespace { .. }
        ));
        assert!(matches!(
            refused(&node, caller("istio-system", Some("ztunnel-2"))),
            NodeError::Pod { .. }
        ));
        let mut other = node.clone();
        fixture::set_metadata(&mut other, "NAMESPACE", "shop");
        assert!(matches!(
            refused(&other, caller("istio-system", None)),
            NodeError::Namespace { .. }
        ));
        let mut other = node;
        fixture::set_metadata(&mut other, "SERVICE_ACCOUNT", "admin");
        assert!(matches!(
            refused(&other, caller("istio-system", None)),
            NodeError::ServiceAccount { .. }
        ));
    }

    #[test]
    fn only_node_proxies_are_served() {
        for id in [
            "",
            "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local",
            "ztunnel~10.0.0.1~web.shop",
            "ztunnel~10.0.0.1~web~shop.svc.cluster.local",
            "ztunnel~10.0.0.1~web.~shop.svc.cluster.local",
            "ztunnel~a~b.c~d~e",
        ] {
            let node = discovery::Node {
                id: id.to_owned(),
                ..discovery::Node::default()
            };
            let error = Node::verify(Some(&node), &caller("shop", None)).unwrap_err();
            assert_eq!(error, NodeError::Id(id.to_owned()));
        }
        assert_eq!(
            Node::verify(None, &caller("shop", None)),
            Err(NodeError::Missing)
        );
    }
}
