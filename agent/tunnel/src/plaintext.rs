//! Inbound connections from outside the mesh: judged without an identity, then carried as they are.
use std::{net::SocketAddr, rc::Rc};

use tokio::net::TcpStream;
use undermesh_model::MESH_PORTS;
use undermesh_telemetry::{Direction, Opening, Outcome, Peer, ResponseFlag, Security};

use crate::{
    copy,
    pod::{Judged, Pod, judge},
    socket,
};

/// Serves one connection that `sk_lookup` handed over; its own address is the one that was asked for.
pub(crate) async fn serve(pod: Rc<Pod>, mut client: TcpStream, source: SocketAddr) {
    let Ok(local) = client.local_addr() else {
        return;
    };
    let target = socket::canonical(local);
    match open(&pod, &mut client, source, target).await {
        Ok(()) => {}
        Err((flag, reason)) => {
            socket::reset_on_close(&client);
            pod.refused(Direction::InboundPlaintext, source, target, flag, reason);
        }
    }
}

async fn open(
    pod: &Rc<Pod>,
    client: &mut TcpStream,
    source: SocketAddr,
    target: SocketAddr,
) -> Result<(), (ResponseFlag, String)> {
    let plain = |reason: &str| (ResponseFlag::None, reason.to_owned());
    let mut admission = pod
        .admit()
        .ok_or_else(|| plain("the pod has as many connections as it may have; close some"))?;
    if MESH_PORTS.contains(&target.port()) {
        return Err(plain(
            "the port belongs to the mesh itself; ask for the application's",
        ));
    }
    let mesh = pod.shared.mesh.snapshot();
    let workload = pod
        .workload(&mesh)
        .ok_or_else(|| plain("the pod is not known to the mesh yet; apply its manifest"))?;
    let judged = Judged {
        identity: None,
        source: source.ip(),
        destination: target.ip(),
        port: target.port(),
    };
    judge(&mesh, &workload, &judged)
        .map_err(|refused| (ResponseFlag::Deny, refused.to_string()))?;
    admission.judged(judged);
    let mut upstream = pod
        .netns
        .connect_from(source.ip(), target)
        .await
        .map_err(|error| {
            (
                ResponseFlag::Connect,
                format!("connect to {target}: {error}"),
            )
        })?;
    let connection = pod.shared.telemetry.opened(Opening {
        direction: Direction::InboundPlaintext,
        source: Peer {
            address: source,
            workload: mesh.workload_at(&workload.network, source.ip()).cloned(),
            identity: None,
        },
        destination: Peer {
            address: target,
            workload: Some(workload),
            identity: None,
        },
        hbone_authority: None,
        service: None,
        security: Security::Unknown,
        id: pod.id,
    });
    let copied = admission
        .until_ended(copy::sockets(client, &mut upstream, &connection))
        .await;
    let failure = match copied {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(ending) => Some(ending.to_string()),
    };
    let outcome = match failure {
        None => Outcome::Complete,
        Some(reason) => {
            socket::reset_on_close(client);
            socket::reset_on_close(&upstream);
            Outcome::Failed {
                flag: ResponseFlag::None,
                reason,
            }
        }
    };
    connection.finish(outcome);
    Ok(())
}
