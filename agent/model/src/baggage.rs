//! The `baggage` header: how the two ends of a tunnel describe their workloads to each other.
//!
//! Source: W3C Baggage, and the keys that Istio's ztunnel uses, which are OpenTelemetry's.
use std::{
    fmt::{self, Write},
    sync::Arc,
};

use crate::{
    identity::Identity,
    locality::Locality,
    workload::{DEFAULT_CAPACITY, Health, NetworkMode, Tunnel, Workload, WorkloadKind},
};

/// Longest header value that is read, in bytes.
pub const MAX_BAGGAGE_BYTES: usize = 4096;

/// Why a header value is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaggageError {
    /// The value is too long.
    #[error("baggage of {0} bytes is longer than the {MAX_BAGGAGE_BYTES} that are read; send less")]
    Length(usize),
}

/// A workload as its peer describes it. What is not known is empty.
///
/// It is a claim, good for labels and nothing else: identity comes from the certificate alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: String,
    /// `k8s.namespace.name`.
    pub namespace: String,
    /// Kind of the controller; selects the key of `workload_name`.
    pub workload_kind: WorkloadKind,
    /// `k8s.deployment.name`, `k8s.cronjob.name`, `k8s.pod.name` or `k8s.job.name`.
    pub workload_name: String,
    /// `service.name`.
    pub canonical_name: String,
    /// `service.version`.
    pub canonical_revision: String,
    /// `cloud.region`.
    pub region: String,
    /// `cloud.availability_zone`.
    pub zone: String,
}

impl Baggage {
    /// Reads a header value. Unknown keys, properties and members that are not `key=value` are passed
    /// over, as is a value with control characters; of a key that comes twice the last one counts.
    ///
    /// # Errors
    /// When the value is longer than [`MAX_BAGGAGE_BYTES`].
    pub fn parse(value: &str) -> Result<Self, BaggageError> {
        if value.len() > MAX_BAGGAGE_BYTES {
            return Err(BaggageError::Length(value.len()));
        }
        let mut baggage = Self::default();
        for member in value.split(',') {
            let pair = member
                .split(';')
                .next()
                .and_then(|pair| pair.split_once('='));
            if let Some((key, text)) = pair
                && let Some(text) = decode(text.trim())
            {
                baggage.set(key.trim(), text);
            }
        }
        Ok(baggage)
    }

    /// The workload as it describes itself, under the identity that it proved; good for labels alone. Its
    /// namespace is the identity's, whatever it says.
    pub fn into_workload(self, identity: &Identity, network: &str) -> Workload {
        let name: Arc<str> = self.workload_name.into();
        Workload {
            uid: Arc::default(),
            name: Arc::clone(&name),
            namespace: Arc::clone(&identity.namespace),
            addresses: Vec::new(),
            network: network.into(),
            tunnel: Tunnel::Hbone,
            identity: identity.clone(),
            node: Arc::default(),
            canonical_name: self.canonical_name.into(),
            canonical_revision: self.canonical_revision.into(),
            workload_name: name,
            workload_kind: self.workload_kind,
            locality: Locality {
                region: self.region.into(),
                zone: self.zone.into(),
                subzone: Arc::default(),
            },
            health: Health::default(),
            cluster: self.cluster.into(),
            policies: Vec::new(),
            hostname: Arc::default(),
            network_mode: NetworkMode::default(),
            capacity: DEFAULT_CAPACITY,
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            native_tunnel: false,
        }
    }

    fn set(&mut self, key: &str, text: String) {
        match key {
            "k8s.cluster.name" => self.cluster = text,
            "k8s.namespace.name" => self.namespace = text,
            "service.name" => self.canonical_name = text,
            "service.version" => self.canonical_revision = text,
            "cloud.region" => self.region = text,
            "cloud.availability_zone" => self.zone = text,
            _ => {
                if let Some(kind) = KINDS.into_iter().find(|kind| name_key(*kind) == key) {
                    self.workload_kind = kind;
                    self.workload_name = text;
                }
            }
        }
    }
}

impl From<&Workload> for Baggage {
    fn from(workload: &Workload) -> Self {
        Self {
            cluster: workload.cluster.to_string(),
            namespace: workload.namespace.to_string(),
            workload_kind: workload.workload_kind,
            workload_name: workload.workload_name.to_string(),
            canonical_name: workload.canonical_name.to_string(),
            canonical_revision: workload.canonical_revision.to_string(),
            region: workload.locality.region.to_string(),
            zone: workload.locality.zone.to_string(),
        }
    }
}

/// The header value, in ztunnel's order of keys, the empty ones left out.
impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (name_key(self.workload_kind), &self.workload_name),
            ("service.name", &self.canonical_name),
            ("service.version", &self.canonical_revision),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        for (index, (key, text)) in members
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .enumerate()
        {
            if index > 0 {
                f.write_char(',')?;
            }
            write!(f, "{key}=")?;
            encode(text, f)?;
        }
        Ok(())
    }
}

const KINDS: [WorkloadKind; 4] = [
    WorkloadKind::Deployment,
    WorkloadKind::CronJob,
    WorkloadKind::Pod,
    WorkloadKind::Job,
];

fn name_key(kind: WorkloadKind) -> &'static str {
    match kind {
        WorkloadKind::Deployment => "k8s.deployment.name",
        WorkloadKind::CronJob => "k8s.cronjob.name",
        WorkloadKind::Pod => "k8s.pod.name",
        WorkloadKind::Job => "k8s.job.name",
    }
}

/// Bytes that a value may hold as they are: `baggage-octet` of W3C Baggage, without '%'.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%')
}

fn encode(text: &str, out: &mut impl Write) -> fmt::Result {
    for byte in text.bytes() {
        if is_plain(byte) {
            out.write_char(char::from(byte))?;
        } else {
            write!(out, "%{byte:02X}")?;
        }
    }
    Ok(())
}

/// `None` for what is not UTF-8 or holds control characters once decoded.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, next) = escaped(rest).unwrap_or((*first, after));
        bytes.push(byte);
        rest = next;
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.chars().any(char::is_control))
}

/// The byte that an escape (`%` and two hexadecimal digits) in front of `bytes` stands for, and what follows it.
fn escaped(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let [b'%', high, low, after @ ..] = bytes else {
        return None;
    };
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    Some((digit(*high)? << 4 | digit(*low)?, after))
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::{fixture::pod, locality::Locality};

    const WRITTEN: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,\
        service.name=web,service.version=latest,cloud.region=eu,cloud.availability_zone=eu-1";

    #[test]
    fn describes_a_workload_as_ztunnel_does() {
        let mut web = pod("web", &["10.0.0.1"]);
        web.locality = Locality {
            region: "eu".into(),
            zone: "eu-1".into(),
            subzone: "x".into(),
        };
        assert_eq!(Baggage::from(&web).to_string(), WRITTEN);
        assert_eq!(Baggage::parse(WRITTEN), Ok(Baggage::from(&web)));
    }

    #[test]
    fn a_described_workload_says_of_itself_what_it_was_told_but_not_its_namespace() {
        let identity = crate::fixture::identity("bank", "teller");
        let described = Baggage::parse(WRITTEN)
            .unwrap()
            .into_workload(&identity, "west");
        let expected = Baggage {
            namespace: "bank".into(),
            ..Baggage::parse(WRITTEN).unwrap()
        };
        assert_eq!(Baggage::from(&described), expected);
        assert_eq!(
            (described.identity, &*described.network),
            (identity, "west")
        );
    }

    #[test]
    fn leaves_out_what_is_empty() {
        let baggage = Baggage {
            namespace: "shop".into(),
            ..Baggage::default()
        };
        assert_eq!(baggage.to_string(), "k8s.namespace.name=shop");
        assert_eq!(Baggage::default().to_string(), "");
    }

    #[test]
    fn passes_over_what_it_does_not_know() {
        let value = " service.name = web ;ttl=1 , tracestate=a=b, nonsense,,=,k8s.job.name=j%2C1,cloud.region=%zz";
        let expected = Baggage {
            canonical_name: "web".into(),
            workload_kind: WorkloadKind::Job,
            workload_name: "j,1".into(),
            region: "%zz".into(),
            ..Baggage::default()
        };
        assert_eq!(Baggage::parse(value), Ok(expected));
    }

    #[test]
    fn takes_no_control_characters_into_labels() {
        assert_eq!(
            Baggage::parse("service.name=a%0Ab,cloud.region=%ff"),
            Ok(Baggage::default())
        );
    }

    #[test]
    fn refuses_a_value_that_is_too_long() {
        let value = "a".repeat(MAX_BAGGAGE_BYTES + 1);
        assert_eq!(
            Baggage::parse(&value),
            Err(BaggageError::Length(value.len()))
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            texts in prop::array::uniform7("\\PC{0,30}"),
            kind in select(KINDS.to_vec()),
        ) {
            let [cluster, namespace, workload_name, canonical_name, canonical_revision, region, zone] = texts;
            // The kind travels in the key of the name, and an empty name is left out.
            let workload_kind = if workload_name.is_empty() { WorkloadKind::default() } else { kind };
            let baggage = Baggage {
                cluster, namespace, workload_kind, workload_name, canonical_name, canonical_revision, region, zone,
            };
            prop_assert_eq!(Baggage::parse(&baggage.to_string()), Ok(baggage.clone()));
            prop_assert!(baggage.to_string().bytes().all(|byte| byte.is_ascii_graphic()));
        }

        #[test]
        fn any_text_is_read_without_harm(text in "(service\\.name|cloud\\.region|.{0,5})=?[%,;=a-fA-F0-9 é]{0,40}") {
            let baggage = Baggage::parse(&text).unwrap();
            prop_assert_eq!(Baggage::parse(&baggage.to_string()), Ok(baggage));
        }

        #[test]
        fn any_bytes_are_read_without_harm(text in any::<String>()) {
            if let Ok(baggage) = Baggage::parse(&text) {
                prop_assert!(text.len() <= MAX_BAGGAGE_BYTES);
                prop_assert!(baggage.canonical_name.len() <= text.len());
            }
        }
    }
}
