//! The API servers of the scenarios: one in the test process, and the real one.
use std::net::TcpListener;

use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use undermesh_kubernetes::testing::{ApiServer, istio_definitions};
use undermesh_tests::agent::poll;
use undermesh_tests::api::Api;
use undermesh_tests::apiserver::KubeApiServer;
use undermesh_tests::{Cluster, Context, Result, Testbed};

/// The port of the server in the test process.
const PORT: u16 = 6443;

/// A server and the runtime that it runs on.
struct Own {
    _server: ApiServer,
    _runtime: Runtime,
}

/// A cluster around an API server in the test process, on a host of the fabric.
pub fn own(bed: &Testbed) -> Result<Cluster<'_>> {
    own_and_its_inside(bed).map(|(cluster, _)| cluster)
}

/// Such a cluster, and the server itself, for what no request can do.
pub fn own_and_its_inside(bed: &Testbed) -> Result<(Cluster<'_>, ApiServer)> {
    let host = bed.outside("control")?;
    let address = host.addresses.v4;
    let listener = host
        .place
        .run(|| TcpListener::bind((address, PORT)))?
        .context(|| "listen for the API server")?;
    listener
        .set_nonblocking(true)
        .context(|| "prepare the API server's listener")?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context(|| "make a runtime for the API server")?;
    let server = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let server = ApiServer::serve(listener);
        server.install_istio();
        server.install_gateway_api();
        Ok::<_, std::io::Error>(server)
    });
    let server = server.context(|| "start the API server")?;
    let api = Api {
        url: server.url(),
        credentials: Vec::new(),
        host,
    };
    let kubeconfig = server.kubeconfig();
    let own = Own {
        _server: server.clone(),
        _runtime: runtime,
    };
    let cluster = Cluster::new(bed, api, &kubeconfig, Box::new(own))?;
    Ok((cluster, server))
}

/// A cluster around kube-apiserver with the kinds of Istio.
pub fn real_with_istio(bed: &Testbed) -> Result<Cluster<'_>> {
    real_with(bed, istio_definitions())
}

/// A cluster around kube-apiserver that has these definitions of kinds.
pub fn real_with(
    bed: &Testbed,
    definitions: impl IntoIterator<Item = Value>,
) -> Result<Cluster<'_>> {
    let cluster = real(bed)?;
    for definition in definitions {
        let applied = cluster.api().apply(&definition)?;
        let name = applied["metadata"]["name"].as_str().unwrap_or_default();
        poll(&format!("wait until {name} is served"), || {
            let found = cluster.api().get("CustomResourceDefinition", "", name)?;
            let conditions = found["status"]["conditions"].as_array();
            Ok(conditions.into_iter().flatten().any(|condition| {
                condition["type"] == "Established" && condition["status"] == "True"
            }))
        })?;
    }
    Ok(cluster)
}

/// A cluster around kube-apiserver.
pub fn real(bed: &Testbed) -> Result<Cluster<'_>> {
    let server = KubeApiServer::start(bed.outside("control")?)?;
    let (api, kubeconfig) = (server.api().clone(), server.kubeconfig());
    Cluster::new(bed, api, &kubeconfig, Box::new(server))
}
