//! The messages, generated from the schemas in `proto/`.

/// `istio.v1.auth`: Istio's certificate service.
#[allow(missing_docs, clippy::all)]
pub mod citadel {
    tonic::include_proto!("istio.v1.auth");
}

/// The SPIFFE Workload API, which has no package name.
#[allow(missing_docs, clippy::all)]
pub mod workload {
    tonic::include_proto!("_");
}

/// SPIRE's own services, nested as their packages are.
#[allow(missing_docs, clippy::all)]
pub mod spire {
    pub mod api {
        pub mod types {
            tonic::include_proto!("spire.api.types");
        }

        pub mod agent {
            pub mod delegatedidentity {
                pub mod v1 {
                    tonic::include_proto!("spire.api.agent.delegatedidentity.v1");
                }
            }
        }
    }
}
