//! The messages, generated from the schemas in `proto/`.

/// Type URL of workloads and services, `istio.workload.Address`.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of policies, `istio.security.Authorization`.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Type URL of a machine's health, `istio.v1.HealthInformation`; a request of it has no response.
pub const HEALTH_TYPE: &str = "type.googleapis.com/istio.v1.HealthInformation";

/// `envoy.service.discovery.v3`: requests and responses of the delta protocol.
#[allow(missing_docs, clippy::all)]
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// `istio.workload`: workloads and services.
#[allow(missing_docs, clippy::all)]
pub mod workload {
    tonic::include_proto!("istio.workload");
}

/// `istio.security`: policies.
#[allow(missing_docs, clippy::all)]
pub mod security {
    tonic::include_proto!("istio.security");
}
