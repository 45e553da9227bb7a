//! Inbound connections from outside the mesh: judged without an identity, then carried as they are.
use std::{net::SocketAddr, rc::Rc};

use tokio::net::TcpStream;
use undermesh_model::MESH_PORTS;
use undermesh_telemetry::{Direction, Opening, Outcome, Peer, ResponseFlag, Security};

use crate::{
    copy,
    failure::Failure,
    pod::{Admission, Judged, Pod, judge},
    socket,
};

/// Serves one connection that `sk_lookup` handed over; its own address is the one that was asked for.
pub(crate) async fn serve(pod: Rc<Pod>, client: TcpStream, source: SocketAddr) {
    let Ok(local) = client.local_addr() else {
        return;
    };
    let target = socket::canonical(local);
    match open(&pod, source, target).await {
        Ok(accepted) => carry(&pod, client, accepted).await,
        Err(failure) => {
            socket::reset_on_close(&client);
            let telemetry = &pod.shared.telemetry;
            failure.report(telemetry, Direction::InboundPlaintext, source, target);
        }
    }
}

/// A connection that was let through, with the application at its other end.
struct Accepted {
    upstream: TcpStream,
    opening: Opening,
    admission: Admission,
}

async fn open(pod: &Rc<Pod>, source: SocketAddr, target: SocketAddr) -> Result<Accepted, Failure> {
    let early = |reason| Failure::early(ResponseFlag::None, reason);
    let admission = pod
        .admit()
        .ok_or_else(|| early("the pod has as many connections as it may have; close some"))?;
    if MESH_PORTS.contains(&target.port()) {
        let reason = "the port belongs to the mesh itself; ask for the application's";
        return Err(early(reason));
    }
    let mesh = pod.shared.mesh.snapshot();
    let workload = pod
        .workload(&mesh)
        .ok_or_else(|| early("the pod is not known to the mesh yet; apply its manifest"))?;
    let judged = Judged {
        identity: None,
        source: source.ip(),
        destination: target.ip(),
        port: target.port(),
    };
    let verdict = judge(&mesh, &workload, &judged);
    let opening = Opening {
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
    };
    if let Err(refused) = verdict {
        return Err(Failure::of(opening, ResponseFlag::Deny, refused));
    }
    admission.judged(judged);
    match pod.netns.connect_from(source.ip(), target).await {
        Ok(upstream) => Ok(Accepted {
            upstream,
            opening,
            admission,
        }),
        Err(error) => {
            let reason = format!("connect to {target}: {error}");
            Err(Failure::of(opening, ResponseFlag::Connect, reason))
        }
    }
}

/// Copies until both directions have ended.
async fn carry(pod: &Pod, mut client: TcpStream, accepted: Accepted) {
    let Accepted {
        mut upstream,
        opening,
        mut admission,
    } = accepted;
    let connection = pod.shared.telemetry.opened(opening);
    let copying = copy::sockets(&mut client, &mut upstream, &connection);
    let reason = match admission.until_ended(copying).await {
        Ok(Ok(())) => return connection.finish(Outcome::Complete),
        Ok(Err(error)) => error.to_string(),
        Err(ending) => ending.to_string(),
    };
    socket::reset_on_close(&client);
    socket::reset_on_close(&upstream);
    connection.finish(Outcome::Failed {
        flag: ResponseFlag::None,
        reason,
    });
}
