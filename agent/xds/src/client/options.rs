//! What a client depends on, and where Istio's environment puts it.
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use prost_types::{ListValue, Struct, Value, value::Kind};
use tonic::{
    metadata::{Ascii, MetadataKey, MetadataValue},
    transport::Uri,
};
use undermesh_identity::Credentials;

use crate::wire::discovery::Node;

/// The server inside Kubernetes, as in ztunnel.
pub const DEFAULT_ADDRESS: &str = "https://istiod.istio-system.svc:15012";
/// The server outside Kubernetes, as in ztunnel.
pub const LOCAL_ADDRESS: &str = "https://localhost:15012";
/// Where Istio mounts the roots that verify the server.
pub const DEFAULT_ROOTS: &str = "/var/run/secrets/istio/root-cert.pem";
/// Where Istio mounts the token.
pub const DEFAULT_TOKEN: &str = "/var/run/secrets/tokens/istio-token";
/// The cluster's name unless it is given.
pub const DEFAULT_CLUSTER: &str = "Kubernetes";

const METADATA_PREFIX: &str = "ISTIO_META_";
const METADATA_JSON_PREFIX: &str = "ISTIO_METAJSON_";
const HEADER_PREFIX: &str = "XDS_HEADER_";
/// Stands for the address of a node that does not know its own, as in ztunnel.
const UNKNOWN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1));

/// Why options cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// The server's address is no URL.
    #[error("XDS_ADDRESS is '{0}', which is no URL with a host; write https://<host>:<port>")]
    Address(String),
    /// The server's address would send the token in clear.
    #[error(
        "XDS_ADDRESS is '{0}'; the token must not travel in clear, write https://<host>:<port>"
    )]
    Insecure(String),
    /// An address that is none.
    #[error("INSTANCE_IP is '{0}', which is no IP address; take it from status.podIP")]
    InstanceIp(String),
    /// Neither true nor false.
    #[error("{0} is '{1}'; write true or false")]
    Switch(&'static str, String),
    /// A header that cannot be sent.
    #[error(
        "{HEADER_PREFIX}{0} is no header; use letters, digits and '-' in its name, and visible ASCII in its value"
    )]
    Header(String),
    /// Metadata that is not JSON.
    #[error(
        "{METADATA_JSON_PREFIX}{0} is not JSON ({1}); write a JSON value, or use {METADATA_PREFIX}{0}"
    )]
    Metadata(String, String),
}

/// What to subscribe to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subscription {
    /// The whole mesh.
    #[default]
    Wildcard,
    /// The workloads of this node, and what is asked for through [`super::Resolver`].
    OnDemand,
}

/// What verifies the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// A PEM file, read at every connection.
    File(PathBuf),
    /// PEM itself.
    Pem(String),
    /// The roots of the system.
    System,
}

/// What this node proves itself with.
#[derive(Clone)]
pub enum Token {
    /// A file, read at every connection: Kubernetes renews it.
    File(PathBuf),
    /// The token itself.
    Text(Arc<str>),
    /// What is presented at the time of each connection: a machine's, which has a token first and then a certificate.
    /// The roots that come with it are taken in place of [`Options::roots`].
    Held(Arc<dyn Credentials>),
    /// Nothing.
    None,
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(one), Self::File(other)) => one == other,
            (Self::Text(one), Self::Text(other)) => one == other,
            (Self::Held(one), Self::Held(other)) => Arc::ptr_eq(one, other),
            (Self::None, Self::None) => true,
            _ => false,
        }
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text(hidden)"),
            Self::Held(_) => f.write_str("Held(hidden)"),
            Self::None => f.write_str("None"),
        }
    }
}

/// The server's URL; always TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(Uri);

impl Address {
    /// Checks a URL, for example [`DEFAULT_ADDRESS`].
    ///
    /// # Errors
    /// When it has no host, or is not `https`.
    pub fn new(url: &str) -> Result<Self, OptionsError> {
        let bad = || OptionsError::Address(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        if uri.host().is_none_or(str::is_empty) {
            return Err(bad());
        }
        if uri.scheme_str() != Some("https") {
            return Err(OptionsError::Insecure(url.to_owned()));
        }
        Ok(Self(uri))
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A header of the request.
pub type Header = (MetadataKey<Ascii>, MetadataValue<Ascii>);

/// Who this node is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeOptions {
    /// Name of the Kubernetes node (`NODE_NAME`); the server sends the workloads of this node unasked.
    pub name: Arc<str>,
    /// Name of the pod that this agent runs in (`POD_NAME`).
    pub pod: String,
    /// Its namespace (`POD_NAMESPACE`); the server compares it with the token's.
    pub namespace: String,
    /// Its address (`INSTANCE_IP`).
    pub address: Option<IpAddr>,
    /// More metadata, for example `ISTIO_VERSION`; it does not override what the fields above say.
    pub metadata: BTreeMap<String, Value>,
}

/// What a client depends on.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server.
    pub address: Address,
    /// What verifies it.
    pub roots: Roots,
    /// The name that its certificate must hold, unless it is the host of `address`.
    pub verified_name: Option<String>,
    /// What this node proves itself with.
    pub token: Token,
    /// More headers of the request.
    pub headers: Vec<Header>,
    /// The cluster's name; the server chooses the token's judge by it.
    pub cluster: Arc<str>,
    /// The network that this node is on; empty is the default one.
    pub network: Arc<str>,
    /// Who this node is.
    pub node: NodeOptions,
    /// What to subscribe to.
    pub subscription: Subscription,
    /// The file that keeps the last known state; none keeps it in memory only.
    pub cache: Option<PathBuf>,
}

impl Options {
    /// Reads the variables that Istio gives its node proxy, for example from [`std::env::vars`]. The cache is
    /// left out: its place is this product's own affair.
    ///
    /// # Errors
    /// When a variable holds what it cannot mean.
    pub fn from_environment(
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, OptionsError> {
        let variables = Variables(variables.into_iter().collect());
        let default = match variables.get("KUBERNETES_SERVICE_HOST") {
            Some(_) => DEFAULT_ADDRESS,
            None => LOCAL_ADDRESS,
        };
        let cluster = variables
            .get("ISTIO_META_CLUSTER_ID")
            .or_else(|| variables.get("CLUSTER_ID"));
        Ok(Self {
            address: Address::new(variables.get("XDS_ADDRESS").unwrap_or(default))?,
            roots: variables.roots(),
            verified_name: variables.get("ALT_XDS_HOSTNAME").map(str::to_owned),
            token: variables.token(),
            headers: variables.headers()?,
            cluster: Arc::from(cluster.unwrap_or(DEFAULT_CLUSTER)),
            network: Arc::from(variables.get("NETWORK").unwrap_or_default()),
            node: variables.node()?,
            subscription: if variables.switch("XDS_ON_DEMAND")? {
                Subscription::OnDemand
            } else {
                Subscription::Wildcard
            },
            cache: None,
        })
    }

    /// The node as the protocol names it.
    pub(super) fn wire_node(&self) -> Node {
        let node = &self.node;
        let address = node.address.unwrap_or(UNKNOWN_ADDRESS);
        let mut fields = node.metadata.clone();
        fields.extend([
            ("NAME".to_owned(), text(&node.pod)),
            ("NAMESPACE".to_owned(), text(&node.namespace)),
            ("INSTANCE_IPS".to_owned(), text(&address.to_string())),
            ("NODE_NAME".to_owned(), text(&node.name)),
            ("CLUSTER_ID".to_owned(), text(&self.cluster)),
        ]);
        let (pod, namespace) = (&node.pod, &node.namespace);
        Node {
            id: format!("ztunnel~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: String::new(),
            metadata: Some(Struct { fields }),
            build_version: String::new(),
        }
    }
}

/// Variables by name; an empty one counts as not set.
struct Variables(BTreeMap<String, String>);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The variables whose names begin with `prefix`, without it.
    fn named(&self, prefix: &'static str) -> impl Iterator<Item = (&str, &str)> {
        let named = self
            .0
            .iter()
            .filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())));
        named.filter(|(name, _)| !name.is_empty())
    }

    fn switch(&self, name: &'static str) -> Result<bool, OptionsError> {
        match self.get(name).unwrap_or("false") {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(OptionsError::Switch(name, other.to_owned())),
        }
    }

    fn roots(&self) -> Roots {
        match self.get("XDS_ROOT_CA") {
            Some("SYSTEM") => Roots::System,
            Some(pem) if pem.contains("-----BEGIN CERTIFICATE") => Roots::Pem(pem.to_owned()),
            path => Roots::File(PathBuf::from(path.unwrap_or(DEFAULT_ROOTS))),
        }
    }

    /// `AUTH_TOKEN` is a path or the token itself. A token is made of three parts in base64url (RFC 7519), which
    /// hold no slash.
    fn token(&self) -> Token {
        match self.get("AUTH_TOKEN") {
            Some(text) if !text.contains('/') && text.split('.').count() == 3 => {
                Token::Text(Arc::from(text))
            }
            path => Token::File(PathBuf::from(path.unwrap_or(DEFAULT_TOKEN))),
        }
    }

    fn headers(&self) -> Result<Vec<Header>, OptionsError> {
        let headers = self.named(HEADER_PREFIX).map(|(name, value)| {
            let bad = || OptionsError::Header(name.to_owned());
            let key = name.to_ascii_lowercase().parse().map_err(|_| bad())?;
            Ok((key, value.parse().map_err(|_| bad())?))
        });
        headers.collect()
    }

    fn node(&self) -> Result<NodeOptions, OptionsError> {
        let owned = |name| self.get(name).unwrap_or_default().to_owned();
        let address = self.get("INSTANCE_IP").map(|text| {
            text.parse()
                .map_err(|_| OptionsError::InstanceIp(text.to_owned()))
        });
        Ok(NodeOptions {
            name: Arc::from(self.get("NODE_NAME").unwrap_or_default()),
            pod: owned("POD_NAME"),
            namespace: owned("POD_NAMESPACE"),
            address: address.transpose()?,
            metadata: self.metadata()?,
        })
    }

    fn metadata(&self) -> Result<BTreeMap<String, Value>, OptionsError> {
        let mut metadata: BTreeMap<_, _> = self
            .named(METADATA_PREFIX)
            .map(|(name, value)| (name.to_owned(), text(value)))
            .collect();
        for (name, value) in self.named(METADATA_JSON_PREFIX) {
            let parsed: serde_json::Value = serde_json::from_str(value)
                .map_err(|error| OptionsError::Metadata(name.to_owned(), error.to_string()))?;
            metadata.insert(name.to_owned(), from_json(parsed));
        }
        Ok(metadata)
    }
}

fn text(text: &str) -> Value {
    kind(Kind::StringValue(text.to_owned()))
}

fn kind(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

/// The same value in protobuf's form (`google.protobuf.Value`), whose numbers are all doubles.
fn from_json(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;

    kind(match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(from_json).collect(),
        }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .into_iter()
                .map(|(name, value)| (name, from_json(value)))
                .collect(),
        }),
    })
}

#[cfg(test)]
mod tests;
