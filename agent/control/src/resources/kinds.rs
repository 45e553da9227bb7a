//! Which API groups, versions and kinds are used, which are only accepted, and which are mistakes.
use super::names;
use crate::diagnostic::{Severity, quote};

/// A kind that the translation uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Labels that enroll pods.
    Namespace,
    /// Labels that tell locality.
    Node,
    /// A workload.
    Pod,
    /// A name and virtual addresses in front of pods.
    Service,
    /// The endpoints of a Service.
    EndpointSlice,
    /// A service outside the cluster.
    ServiceEntry,
    /// A workload outside the cluster.
    WorkloadEntry,
    /// Whether plain connections are accepted.
    PeerAuthentication,
    /// Who may connect.
    AuthorizationPolicy,
    /// A waypoint.
    Gateway,
    /// What waypoints of one class have in common.
    GatewayClass,
}

const OBJECT_FIELDS: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
const SLICE_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "addressType",
    "endpoints",
    "ports",
];

/// Who wrote an object as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A person: what is not known may be a mistake.
    Person,
    /// An API server, which has checked it by a schema that may be newer than this program.
    Server,
}

impl Kind {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::Gateway,
        Self::GatewayClass,
    ];

    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::Gateway => "Gateway",
            Self::GatewayClass => "GatewayClass",
        }
    }

    /// Its name in the paths of an API server.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::ServiceEntry => "serviceentries",
            Self::WorkloadEntry => "workloadentries",
            Self::PeerAuthentication => "peerauthentications",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::Gateway => "gateways",
            Self::GatewayClass => "gatewayclasses",
        }
    }

    /// Its API group; empty for the core group.
    pub fn group(self) -> &'static str {
        self.home().map_or("", |group| group.name)
    }

    /// The versions of its group that are read, the preferred one first.
    pub fn versions(self) -> &'static [&'static str] {
        self.home().map_or(&[], |group| group.versions)
    }

    fn home(self) -> Option<&'static Group> {
        GROUPS.iter().find(|group| group.used.contains(&self))
    }

    /// Whether its objects live in namespaces.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
    }

    /// How an unknown field counts: in a policy it could have narrowed what is allowed.
    pub fn unknown_field(self, writer: Writer) -> Option<Severity> {
        match (self, writer) {
            (Self::PeerAuthentication | Self::AuthorizationPolicy, _) => Some(Severity::Error),
            (_, Writer::Person) => Some(Severity::Warning),
            (_, Writer::Server) => None,
        }
    }

    /// The fields at the top of its objects.
    pub fn fields(self) -> &'static [&'static str] {
        if self == Self::EndpointSlice {
            SLICE_FIELDS
        } else {
            OBJECT_FIELDS
        }
    }
}

/// A group of which at least one kind is used; every other kind in it must be known too.
struct Group {
    name: &'static str,
    versions: &'static [&'static str],
    used: &'static [Kind],
    noted: &'static [&'static str],
    /// Those that would restrict who may connect: whoever writes one must know that it does not.
    unenforced: &'static [&'static str],
}

const GROUPS: &[Group] = &[
    Group {
        name: "",
        versions: &["v1"],
        used: &[Kind::Namespace, Kind::Node, Kind::Pod, Kind::Service],
        noted: &[
            "Binding",
            "ConfigMap",
            "Endpoints",
            "Event",
            "LimitRange",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Secret",
            "ServiceAccount",
        ],
        unenforced: &[],
    },
    Group {
        name: "discovery.k8s.io",
        versions: &["v1"],
        used: &[Kind::EndpointSlice],
        noted: &[],
        unenforced: &[],
    },
    Group {
        name: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        used: &[Kind::ServiceEntry, Kind::WorkloadEntry],
        noted: &[
            "DestinationRule",
            "EnvoyFilter",
            "Gateway",
            "ProxyConfig",
            "Sidecar",
            "VirtualService",
            "WorkloadGroup",
        ],
        unenforced: &[],
    },
    Group {
        name: "security.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        used: &[Kind::PeerAuthentication, Kind::AuthorizationPolicy],
        noted: &[],
        unenforced: &["RequestAuthentication"],
    },
    Group {
        name: "gateway.networking.k8s.io",
        versions: &["v1", "v1beta1", "v1alpha2", "v1alpha3"],
        used: &[Kind::Gateway, Kind::GatewayClass],
        noted: &[
            "BackendTLSPolicy",
            "GRPCRoute",
            "HTTPRoute",
            "ListenerSet",
            "ReferenceGrant",
            "TCPRoute",
            "TLSRoute",
            "UDPRoute",
        ],
        unenforced: &[],
    },
];

/// Groups of which nothing is used.
const NOTED_GROUPS: &[&str] = &[
    "apps",
    "autoscaling",
    "batch",
    "extensions.istio.io",
    "networking.k8s.io",
    "policy",
    "telemetry.istio.io",
];

/// What is done with an object of some group, version and kind.
#[derive(Debug, PartialEq, Eq)]
pub enum Class {
    /// Read and translated.
    Used(Kind),
    /// Accepted without effect.
    Noted {
        /// Whether that is by design.
        severity: Severity,
        /// Says so.
        message: String,
    },
    /// Probably a mistake.
    Refused {
        /// `apiVersion` or `kind`.
        field: &'static str,
        /// What is wrong.
        message: String,
        /// What to write.
        remedy: String,
    },
}

/// Decides by `apiVersion` and `kind`.
pub fn classify(api_version: &str, kind: &str) -> Class {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    match GROUPS.iter().find(|known| known.name == group) {
        Some(known) => classify_in(known, version, kind),
        None => classify_foreign(group, api_version, kind),
    }
}

fn classify_in(group: &Group, version: &str, kind: &str) -> Class {
    if !group.versions.contains(&version) {
        let versions: Vec<String> = group
            .versions
            .iter()
            .map(|version| joined(group.name, version))
            .collect();
        return Class::Refused {
            field: "apiVersion",
            message: format!(
                "{} is not a known version",
                quote(&joined(group.name, version))
            ),
            remedy: format!("write {}", versions.join(" or ")),
        };
    }
    if let Some(used) = group.used.iter().find(|used| used.name() == kind) {
        return Class::Used(*used);
    }
    if group.noted.contains(&kind) {
        return not_used();
    }
    if group.unenforced.contains(&kind) {
        return unenforced();
    }
    refuse_kind(group, kind)
}

fn refuse_kind(group: &Group, kind: &str) -> Class {
    let known: Vec<&str> = group
        .used
        .iter()
        .map(|used| used.name())
        .chain(group.noted.iter().copied())
        .chain(group.unenforced.iter().copied())
        .collect();
    let remedy = match (names::nearest(kind, &known), home_of(kind)) {
        (_, Some(home)) => format!("write apiVersion: {}", joined(home.name, home.versions[0])),
        (Some(name), None) => format!("did you mean '{name}'?"),
        (None, None) => "correct the kind or remove the document".to_owned(),
    };
    let group = if group.name.is_empty() {
        "the core group"
    } else {
        group.name
    };
    Class::Refused {
        field: "kind",
        message: format!("{} is not a kind of {group}", quote(kind)),
        remedy,
    }
}

fn classify_foreign(group: &str, api_version: &str, kind: &str) -> Class {
    if NOTED_GROUPS.contains(&group) {
        return not_used();
    }
    let known: Vec<&str> = GROUPS
        .iter()
        .map(|group| group.name)
        .filter(|name| !name.is_empty())
        .collect();
    let meant = names::nearest(group, &known)
        .and_then(|name| GROUPS.iter().find(|group| group.name == name));
    if let Some(home) = meant.or_else(|| home_of(kind)) {
        return Class::Refused {
            field: "apiVersion",
            message: format!("{} is not a known group", quote(api_version)),
            remedy: format!("did you mean '{}'?", joined(home.name, home.versions[0])),
        };
    }
    if group.ends_with(".k8s.io") {
        return not_used();
    }
    Class::Noted {
        severity: Severity::Warning,
        message: format!(
            "{} of {} is not a known kind and has no effect",
            quote(kind),
            quote(api_version)
        ),
    }
}

/// The group that has a used kind of that name.
fn home_of(kind: &str) -> Option<&'static Group> {
    GROUPS
        .iter()
        .find(|group| group.used.iter().any(|used| used.name() == kind))
}

fn not_used() -> Class {
    Class::Noted {
        severity: Severity::Info,
        message: "not used by the L4 data plane".to_owned(),
    }
}

fn unenforced() -> Class {
    Class::Noted {
        severity: Severity::Warning,
        message: "not enforced by the L4 data plane; needs a waypoint".to_owned(),
    }
}

fn joined(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(api_version: &str, kind: &str) -> String {
        match classify(api_version, kind) {
            Class::Refused {
                field,
                message,
                remedy,
            } => format!("{field}: {message}; {remedy}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn every_served_version_is_taken() {
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let security = format!("security.istio.io/{version}");
            assert_eq!(
                classify(&security, "PeerAuthentication"),
                Class::Used(Kind::PeerAuthentication)
            );
            let networking = format!("networking.istio.io/{version}");
            assert_eq!(
                classify(&networking, "ServiceEntry"),
                Class::Used(Kind::ServiceEntry)
            );
        }
        assert_eq!(classify("v1", "Pod"), Class::Used(Kind::Pod));
        assert_eq!(
            classify("discovery.k8s.io/v1", "EndpointSlice"),
            Class::Used(Kind::EndpointSlice)
        );
    }

    #[test]
    fn kinds_without_a_part_at_l4_are_accepted() {
        for (api_version, kind) in [
            ("apps/v1", "Deployment"),
            ("v1", "ServiceAccount"),
            ("networking.istio.io/v1alpha3", "VirtualService"),
            ("networking.istio.io/v1", "Gateway"),
            ("gateway.networking.k8s.io/v1", "HTTPRoute"),
            ("rbac.authorization.k8s.io/v1", "Role"),
        ] {
            assert_eq!(
                classify(api_version, kind),
                not_used(),
                "{api_version} {kind}"
            );
        }
    }

    #[test]
    fn what_would_restrict_and_does_not_is_a_warning() {
        assert_eq!(
            classify("security.istio.io/v1beta1", "RequestAuthentication"),
            unenforced()
        );
    }

    #[test]
    fn mistakes_come_with_a_remedy() {
        assert_eq!(
            remedy("security.istio.io/v1", "AuthorizatonPolicy"),
            "kind: 'AuthorizatonPolicy' is not a kind of security.istio.io; did you mean 'AuthorizationPolicy'?"
        );
        assert_eq!(
            remedy("securty.istio.io/v1", "AuthorizationPolicy"),
            "apiVersion: 'securty.istio.io/v1' is not a known group; did you mean 'security.istio.io/v1'?"
        );
        assert_eq!(
            remedy("v1", "AuthorizationPolicy"),
            "kind: 'AuthorizationPolicy' is not a kind of the core group; write apiVersion: security.istio.io/v1"
        );
        assert_eq!(
            remedy("v2", "Pod"),
            "apiVersion: 'v2' is not a known version; write v1"
        );
        assert_eq!(
            remedy("example.com/v1", "Service"),
            "apiVersion: 'example.com/v1' is not a known group; did you mean 'v1'?"
        );
    }

    #[test]
    fn foreign_kinds_are_a_warning() {
        assert!(matches!(
            classify("example.com/v1", "Widget"),
            Class::Noted {
                severity: Severity::Warning,
                ..
            }
        ));
    }
}
