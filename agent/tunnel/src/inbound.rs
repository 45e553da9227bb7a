//! Inbound HBONE: mutual TLS, then each CONNECT is one connection, judged by policy and carried on.
use std::{net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, StatusCode};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::spawn_local};
use undermesh_model::{Baggage, Identity, Mesh, Service, Workload};
use undermesh_telemetry::{Direction, Opening, Outcome, Peer, ResponseFlag, Security};

use crate::{
    arrival,
    copy::{self, CopyError, Side},
    failure::Failure,
    hbone::{self, Authority},
    pod::{Admission, Judged, Pod, judge},
    proxy,
    session::{self, Incoming, SessionError},
    socket,
};

/// Serves one connection of a mesh peer until it ends.
pub(crate) async fn serve(pod: Rc<Pod>, tcp: TcpStream, peer: SocketAddr) {
    let Ok(local) = tcp.local_addr() else { return };
    let local = socket::canonical(local);
    let refuse = |flag, reason: String| {
        let telemetry = &pod.shared.telemetry;
        Failure::early(flag, reason).report(telemetry, Direction::Inbound, peer, local);
    };
    let Some(mut admission) = pod.admit() else {
        let reason = "the pod has as many connections as it may have".to_owned();
        return refuse(ResponseFlag::None, reason);
    };
    let certificate = match pod.certificate.load() {
        Ok(certificate) => certificate,
        Err(error) => {
            let reason = format!("own certificate: {error}");
            return refuse(ResponseFlag::IdentityError, reason);
        }
    };
    let session = match session::accept(tcp, peer, &certificate).await {
        Ok(session) => session,
        Err(error) => return refuse(flag_of(&error), error.to_string()),
    };
    let identity = session.peer.clone();
    let streams = session.run(pod.draining(), |incoming| {
        let tunnel = Tunnel {
            pod: Rc::clone(&pod),
            peer,
            local,
            identity: identity.clone(),
        };
        spawn_local(tunnel.serve(incoming));
    });
    match admission.until_ended(streams).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "tunnel ended"),
        Err(ending) => tracing::debug!(%peer, %ending, "tunnel ended"),
    }
}

fn flag_of(error: &SessionError) -> ResponseFlag {
    match error {
        SessionError::Tls { .. } | SessionError::Timeout(_) => ResponseFlag::TlsFailure,
        SessionError::Http { .. } => ResponseFlag::H2HandshakeFailure,
        SessionError::Identity { .. } => ResponseFlag::IdentityError,
    }
}

/// One CONNECT, and what is known of the connection that brought it.
struct Tunnel {
    pod: Rc<Pod>,
    peer: SocketAddr,
    local: SocketAddr,
    identity: Identity,
}

/// A CONNECT that was let through, with the application at its other end.
struct Accepted {
    upstream: TcpStream,
    opening: Opening,
    baggage: String,
    /// What the application is told before anything else; empty for most.
    preface: Vec<u8>,
    admission: Admission,
}

/// A CONNECT that was not.
struct Rejected {
    status: StatusCode,
    failure: Failure,
}

impl Rejected {
    fn early(status: StatusCode, reason: impl ToString) -> Self {
        Self {
            status,
            failure: Failure::early(ResponseFlag::None, reason),
        }
    }
}

impl Tunnel {
    async fn serve(self, (request, mut respond): Incoming) {
        match self.accept(&request).await {
            Ok(accepted) => carry(accepted, request.into_body(), respond).await,
            Err(rejected) => {
                // The peer may be gone already, and there is nobody else to tell.
                let _ = respond.send_response(hbone::refused(rejected.status), true);
                let telemetry = &self.pod.shared.telemetry;
                let failure = rejected.failure;
                failure.report(telemetry, Direction::Inbound, self.peer, self.local);
            }
        }
    }

    async fn accept(&self, request: &http::Request<RecvStream>) -> Result<Accepted, Rejected> {
        let bad_request = |error| Rejected::early(StatusCode::BAD_REQUEST, error);
        let unavailable = |reason| Rejected::early(StatusCode::SERVICE_UNAVAILABLE, reason);
        let authority = hbone::authority(request).map_err(bad_request)?;
        let admission = self
            .pod
            .admit()
            .ok_or_else(|| unavailable("the pod has as many connections as it may have"))?;
        let mesh = self.pod.shared.mesh.snapshot();
        let workload = self.pod.workload(&mesh).ok_or_else(|| {
            unavailable("the pod is not known to the mesh yet; apply its manifest")
        })?;
        let arrival = arrival::find(&mesh, &workload, self.local.ip(), &authority)
            .map_err(|astray| Rejected::early(astray.status(), astray))?;
        let baggage = Baggage::from(&*workload).to_string();
        let judged = Judged {
            identity: Some(self.identity.clone()),
            source: self.peer.ip(),
            destination: arrival.application.ip(),
            port: arrival.application.port(),
        };
        let verdict = judge(&mesh, &workload, &judged);
        let opening = self.opening(&mesh, workload, &authority, request.headers());
        if let Err(refused) = verdict {
            return Err(Rejected {
                status: StatusCode::UNAUTHORIZED,
                failure: Failure::of(opening, ResponseFlag::Deny, refused),
            });
        }
        admission.judged(judged);
        let target = arrival.target;
        // An application on loopback is told who its client is, and is not to see a foreign address there.
        let client = match arrival.announced {
            None => self.peer.ip(),
            Some(_) => target.ip(),
        };
        let told = |asked| proxy::header(self.peer, asked, &self.identity);
        match self.pod.netns.connect_from(client, target).await {
            Ok(upstream) => Ok(Accepted {
                upstream,
                opening,
                baggage,
                preface: arrival.announced.map(told).unwrap_or_default(),
                admission,
            }),
            Err(error) => Err(Rejected {
                status: StatusCode::SERVICE_UNAVAILABLE,
                failure: Failure::of(
                    opening,
                    ResponseFlag::Connect,
                    format!("connect to {target}: {error}"),
                ),
            }),
        }
    }

    fn opening(
        &self,
        mesh: &Mesh,
        workload: Arc<Workload>,
        authority: &Authority,
        headers: &HeaderMap,
    ) -> Opening {
        let source = self.source(mesh, &workload, headers);
        let service = asked_service(mesh, &workload, authority, headers).cloned();
        Opening {
            direction: Direction::Inbound,
            source: Peer {
                address: self.peer,
                workload: source,
                identity: Some(self.identity.clone()),
            },
            destination: Peer {
                address: self.local,
                workload: Some(workload),
                identity: Some(self.pod.identity.clone()),
            },
            hbone_authority: Some(authority.to_string().into()),
            service,
            security: Security::MutualTls,
            id: self.pod.id,
        }
    }

    /// Who sent it, for labels: whom the mesh knows at its address, or else as the peer describes itself.
    /// Only the certificate says whether a workload speaks here, and under which identity.
    fn source(
        &self,
        mesh: &Mesh,
        workload: &Workload,
        headers: &HeaderMap,
    ) -> Option<Arc<Workload>> {
        let network = hbone::text(headers, hbone::FORWARDED_NETWORK);
        let is_near = network.is_none_or(|name| name.eq_ignore_ascii_case(&workload.network));
        // An address of another network may be somebody else's here.
        let known = is_near
            .then(|| mesh.workload_at(&workload.network, self.peer.ip()))
            .flatten()
            .filter(|source| source.identity == self.identity);
        known.cloned().or_else(|| {
            let claim = Baggage::parse(hbone::text(headers, hbone::BAGGAGE)?).ok()?;
            let network = network.unwrap_or(&workload.network);
            Some(Arc::new(claim.into_workload(&self.identity, network)))
        })
    }
}

/// The service that the client asked for, as far as the request tells.
fn asked_service<'a>(
    mesh: &'a Mesh,
    workload: &Workload,
    authority: &Authority,
    headers: &HeaderMap,
) -> Option<&'a Arc<Service>> {
    match authority {
        Authority::Host { host, .. } => mesh.service_meant(host, &workload.namespace),
        Authority::Address(_) => hbone::text(headers, hbone::FORWARDED)
            .and_then(hbone::forwarded_host)
            .and_then(|host| mesh.service_named(host)),
    }
}

/// Answers 200 and copies until both directions have ended.
async fn carry(accepted: Accepted, body: RecvStream, mut respond: SendResponse<Bytes>) {
    let Accepted {
        mut upstream,
        opening,
        baggage,
        preface,
        mut admission,
    } = accepted;
    let connection = admission.pod().shared.telemetry.opened(opening);
    let send = match respond.send_response(hbone::accepted(&baggage), false) {
        Ok(send) => send,
        Err(error) => {
            socket::reset_on_close(&upstream);
            let reason = format!("tunnel: {error}");
            return connection.finish(Outcome::Failed {
                flag: ResponseFlag::None,
                reason,
            });
        }
    };
    let copied = admission
        .until_ended(async {
            let side = Side::Upstream;
            let told = upstream.write_all(&preface).await;
            told.map_err(|error| CopyError::Socket { side, error })?;
            copy::tunnel(&mut upstream, side, send, body, &connection).await
        })
        .await;
    let reason = match copied {
        Ok(Ok(())) => return connection.finish(Outcome::Complete),
        Ok(Err(error)) => error.to_string(),
        Err(ending) => {
            respond.send_reset(h2::Reason::CANCEL);
            ending.to_string()
        }
    };
    socket::reset_on_close(&upstream);
    connection.finish(Outcome::Failed {
        flag: ResponseFlag::None,
        reason,
    });
}
