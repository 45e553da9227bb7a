//! The few calls of the Container Runtime Interface (`runtime.v1`) by which kubelet makes and ends sandboxes.
use std::{collections::HashMap, path::Path, time::Duration};

use http::uri::PathAndQuery;
use tonic::{
    Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// `LinuxPodSandboxConfig`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Linux {
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

/// `PodSandboxConfig`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Config {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<Linux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<Config>,
}

/// `StopPodSandboxRequest`, `RemovePodSandboxRequest` and `RunPodSandboxResponse`: a sandbox by its id.
#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// The time between two questions whether containerd serves. Its word that it is ready comes before that, and nothing
/// tells of the moment itself.
const ASK_INTERVAL: Duration = Duration::from_millis(10);
/// What containerd says of every call until then.
const STARTING: &str = "not initialized";

/// A client of a container runtime.
#[derive(Clone)]
pub struct Runtime(Grpc<Channel>);

impl Runtime {
    /// Connects to the runtime's socket, and waits until the runtime serves.
    pub async fn connect(socket: &Path) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let runtime = Self(Grpc::new(endpoint.connect().await.unwrap()));
        while let Err(status) = runtime.call::<_, Empty>("Status", Empty {}).await {
            assert!(status.message().contains(STARTING), "{status}");
            tokio::time::sleep(ASK_INTERVAL).await;
        }
        runtime
    }

    /// Makes a sandbox, and returns its id once its network stands.
    pub async fn run(&self, config: Config) -> Result<String, Status> {
        let request = RunPodSandboxRequest {
            config: Some(config),
        };
        let Id { id } = self.call("RunPodSandbox", request).await?;
        Ok(id)
    }

    /// Ends a sandbox and its network.
    pub async fn stop(&self, id: &str) -> Result<(), Status> {
        let id = id.to_owned();
        self.call("StopPodSandbox", Id { id })
            .await
            .map(|Empty {}| ())
    }

    /// Removes what is left of a sandbox.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let id = id.to_owned();
        self.call("RemovePodSandbox", Id { id })
            .await
            .map(|Empty {}| ())
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut client = self.0.clone();
        client
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let path = PathAndQuery::try_from(path).unwrap();
        let codec = ProstCodec::<Q, A>::default();
        let answer = client
            .unary(tonic::Request::new(request), path, codec)
            .await?;
        Ok(answer.into_inner())
    }
}
