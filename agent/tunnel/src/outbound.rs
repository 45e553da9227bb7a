//! Outbound connections: what the application asked for is looked up, and carried there.
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::seq::IteratorRandom as _;
use tokio::{net::TcpStream, time::timeout};
use undermesh_model::{
    Baggage, Destination, Identity, Named, OpenConnection, Refusal, Route, Service, Workload,
};
use undermesh_telemetry::{Connection, Direction, Opening, Outcome, Peer, ResponseFlag, Security};

use crate::{
    copy::{self, Side},
    failure::Failure,
    hbone::Connect,
    pod::{Admission, Pod},
    pool::{OpenError, PeerKey, Stream},
    socket,
};

/// Endpoints tried for one connection.
const MAX_ATTEMPTS: usize = 3;
/// How long a connection waits for the mesh to know its pod, as in Istio's node proxy.
const WORKLOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one captured connection of the pod's application.
pub(crate) async fn serve(pod: Rc<Pod>, app: TcpStream, client: SocketAddr) {
    let Some(target) = pod.shared.destinations.take(pod.id, client) else {
        socket::reset_on_close(&app);
        let listener = app.local_addr().map_or(client, socket::canonical);
        let reason = "no destination is kept for it: it was made to the mesh's own port, or more \
                      connections were waiting than the node keeps";
        let telemetry = &pod.shared.telemetry;
        return early(reason).report(telemetry, Direction::Outbound, client, listener);
    };
    let asked = Asked {
        pod,
        client,
        target: socket::canonical(target),
    };
    let Some(mut admission) = asked.pod.admit() else {
        socket::reset_on_close(&app);
        return asked.report(early(
            "the pod has as many connections as it may have; close some",
        ));
    };
    let established = match admission.until_ended(asked.establish()).await {
        Ok(result) => result,
        Err(ending) => Err(early(ending)),
    };
    match established {
        Ok(established) => carry(app, established, &mut admission).await,
        Err(failure) => {
            socket::reset_on_close(&app);
            asked.report(failure);
        }
    }
}

/// Copies until both directions have ended.
async fn carry(mut app: TcpStream, established: Established, admission: &mut Admission) {
    let Established {
        upstream,
        connection,
        load: _load,
    } = established;
    let copied = match upstream {
        Upstream::Hbone(Stream {
            send,
            receive,
            lease: _lease,
            ..
        }) => {
            let copying = copy::tunnel(&mut app, Side::Downstream, send, receive, &connection);
            admission.until_ended(copying).await
        }
        Upstream::Plain(mut upstream) => {
            let copying = copy::sockets(&mut app, &mut upstream, &connection);
            let copied = admission.until_ended(copying).await;
            if !matches!(copied, Ok(Ok(()))) {
                socket::reset_on_close(&upstream);
            }
            copied
        }
    };
    let reason = match copied {
        Ok(Ok(())) => return connection.finish(Outcome::Complete),
        Ok(Err(error)) => error.to_string(),
        Err(ending) => ending.to_string(),
    };
    socket::reset_on_close(&app);
    connection.finish(Outcome::Failed {
        flag: ResponseFlag::None,
        reason,
    });
}

/// A connection that an application asked for.
pub(crate) struct Asked {
    pub pod: Rc<Pod>,
    pub client: SocketAddr,
    pub target: SocketAddr,
}

/// The way to the destination, open.
struct Established {
    upstream: Upstream,
    connection: Connection,
    /// Counts the connection for the choice of endpoints; none where nothing was chosen.
    load: Option<OpenConnection>,
}

enum Upstream {
    Hbone(Stream),
    Plain(TcpStream),
}

impl Asked {
    /// Looks up the destination and connects to it, trying other endpoints while one cannot be reached.
    async fn establish(&self) -> Result<Established, Failure> {
        let source = self.source().await?;
        let mut tried = Vec::new();
        let mut last = None;
        while tried.len() < MAX_ATTEMPTS {
            let route = match self.find(&source, &tried).await {
                Ok(route) => route,
                // What went wrong with an endpoint tells more than that there is no other.
                Err(error) => {
                    return Err(last.unwrap_or_else(|| Failure::early(error.flag(), error)));
                }
            };
            let chosen = route
                .chosen()
                .map(|(workload, load)| (Arc::clone(&workload.uid), Arc::clone(load)));
            match (self.attempt(&source, route).await, chosen) {
                (Ok(established), chosen) => {
                    if let Some((_, load)) = chosen {
                        load.succeeded();
                    }
                    return Ok(established);
                }
                (Err(attempt), Some((uid, load))) if attempt.another => {
                    load.failed(Instant::now());
                    tried.push(uid);
                    last = Some(attempt.failure);
                }
                (Err(attempt), _) => return Err(attempt.failure),
            }
        }
        Err(last.unwrap_or_else(|| early("no endpoint was tried")))
    }

    /// The pod's own workload, waiting a while for a mesh that knows it.
    async fn source(&self) -> Result<Arc<Workload>, Failure> {
        let known = async {
            let mut changed = self.pod.shared.changed.clone();
            loop {
                changed.mark_unchanged();
                if let Some(workload) = self.pod.workload(&self.pod.shared.mesh.load()) {
                    return Some(workload);
                }
                changed.changed().await.ok()?;
            }
        };
        timeout(WORKLOAD_TIMEOUT, known)
            .await
            .ok()
            .flatten()
            .ok_or_else(|| {
                early(format!(
                    "pod {}/{} is not known to the mesh as {}; apply its manifest",
                    self.pod.namespace, self.pod.name, self.pod.identity
                ))
            })
    }

    /// The route by what the mesh knows now.
    pub(crate) fn route(&self, source: &Workload, tried: &[Arc<str>]) -> Result<Route, Refusal> {
        self.pod.shared.mesh.load().route(
            source,
            self.target,
            tried,
            Instant::now(),
            &mut *self.pod.shared.random.borrow_mut(),
        )
    }

    async fn attempt(&self, source: &Arc<Workload>, route: Route) -> Result<Established, Attempt> {
        match route {
            Route::Hbone {
                destination,
                authority,
            } => self.open_tunnel(source, &destination, authority).await,
            Route::Plain(destination) => self.open_plain(source, &destination).await,
            Route::Passthrough { service, .. } => self.pass_through(source, service).await,
            Route::Named(named) => {
                let route = self.resolve(source, named).await?;
                Box::pin(self.attempt(source, route)).await
            }
        }
    }

    /// The route to a workload whose address only its name tells.
    async fn resolve(&self, source: &Arc<Workload>, named: Named) -> Result<Route, Attempt> {
        let opening = self.plain_opening(
            source,
            self.target,
            Some(Arc::clone(named.workload())),
            named.service().cloned(),
        );
        let failed = |reason: String| Attempt {
            another: true,
            failure: Failure::of(opening, ResponseFlag::Connect, reason),
        };
        match self.pod.shared.names.resolve(named.host()).await {
            Err(error) => Err(failed(error.to_string())),
            Ok(addresses) => match self.address_among(&addresses, &named) {
                None => Err(failed(format!(
                    "{} has no address of the families that its service offers",
                    named.host()
                ))),
                Some(address) => named.at(address).map_err(|error| failed(error.to_string())),
            },
        }
    }

    /// Any of the addresses, of the family that was asked for where there is one.
    fn address_among(&self, addresses: &[IpAddr], named: &Named) -> Option<IpAddr> {
        let admitted = || {
            let families = named.families();
            addresses.iter().filter(move |it| families.admit(**it))
        };
        let same = || admitted().filter(|it| it.is_ipv4() == self.target.is_ipv4());
        let random = &mut *self.pod.shared.random.borrow_mut();
        same()
            .choose(random)
            .or_else(|| admitted().choose(random))
            .copied()
    }

    async fn open_tunnel(
        &self,
        source: &Arc<Workload>,
        destination: &Destination,
        authority: SocketAddr,
    ) -> Result<Established, Attempt> {
        let key = PeerKey {
            workload: Arc::clone(&destination.workload.uid),
            address: destination.target,
            expected: Arc::clone(&destination.expected),
        };
        let baggage = Baggage::from(&**source).to_string();
        let request = || {
            Connect {
                authority,
                client: SocketAddr::new(self.own_address(source), self.client.port()),
                service: destination
                    .service
                    .as_deref()
                    .map(|service| &*service.hostname),
                baggage: &baggage,
            }
            .request(&mut *self.pod.shared.random.borrow_mut())
        };
        let opening = |peer: Option<Identity>| Opening {
            direction: Direction::Outbound,
            source: Peer {
                address: self.client,
                workload: Some(Arc::clone(source)),
                identity: peer.is_some().then(|| self.pod.identity.clone()),
            },
            destination: Peer {
                address: key.address,
                workload: Some(Arc::clone(&destination.workload)),
                identity: peer,
            },
            hbone_authority: Some(authority.to_string().into()),
            service: destination.service.clone(),
            security: Security::MutualTls,
            id: self.pod.id,
        };
        match self.pod.pool.open(&key, request).await {
            Ok(stream) => {
                let opening = opening(Some(stream.peer.clone()));
                Ok(self.established(Upstream::Hbone(stream), opening, Some(destination)))
            }
            Err(error) => Err(Attempt {
                another: concerns_the_endpoint(&error),
                failure: Failure::of(opening(None), flag_of(&error), &error),
            }),
        }
    }

    async fn open_plain(
        &self,
        source: &Arc<Workload>,
        destination: &Destination,
    ) -> Result<Established, Attempt> {
        let opening = self.plain_opening(
            source,
            destination.target,
            Some(Arc::clone(&destination.workload)),
            destination.service.clone(),
        );
        match self
            .pod
            .netns
            .connect(destination.target, self.pod.mark)
            .await
        {
            Ok(stream) => Ok(self.established(Upstream::Plain(stream), opening, Some(destination))),
            Err(error) => Err(Attempt {
                another: true,
                failure: Failure::of(
                    opening,
                    ResponseFlag::Connect,
                    format!("connect to {}: {error}", destination.target),
                ),
            }),
        }
    }

    async fn pass_through(
        &self,
        source: &Arc<Workload>,
        service: Option<Arc<Service>>,
    ) -> Result<Established, Attempt> {
        let opening = self.plain_opening(source, self.target, None, service);
        match self.pod.netns.connect(self.target, self.pod.mark).await {
            Ok(stream) => Ok(self.established(Upstream::Plain(stream), opening, None)),
            Err(error) => {
                let reason = format!("connect to {}: {error}", self.target);
                Err(Attempt {
                    another: false,
                    failure: Failure::of(opening, ResponseFlag::Connect, reason),
                })
            }
        }
    }

    fn plain_opening(
        &self,
        source: &Arc<Workload>,
        address: SocketAddr,
        workload: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
    ) -> Opening {
        Opening {
            direction: Direction::Outbound,
            source: Peer {
                address: self.client,
                workload: Some(Arc::clone(source)),
                identity: None,
            },
            destination: Peer {
                address,
                workload,
                identity: None,
            },
            hbone_authority: None,
            service,
            security: Security::Unknown,
            id: self.pod.id,
        }
    }

    fn established(
        &self,
        upstream: Upstream,
        opening: Opening,
        destination: Option<&Destination>,
    ) -> Established {
        Established {
            upstream,
            connection: self.pod.shared.telemetry.opened(opening),
            load: destination.map(|destination| destination.load.opened()),
        }
    }

    /// The pod's address of the kind that the client used; a client on loopback has none to tell.
    fn own_address(&self, source: &Workload) -> IpAddr {
        let client = self.client.ip();
        source
            .addresses
            .iter()
            .copied()
            .find(|address| client.is_loopback() && address.is_ipv4() == client.is_ipv4())
            .unwrap_or(client)
    }

    fn report(&self, failure: Failure) {
        let telemetry = &self.pod.shared.telemetry;
        failure.report(telemetry, Direction::Outbound, self.client, self.target);
    }
}

fn early(reason: impl ToString) -> Failure {
    Failure::early(ResponseFlag::None, reason)
}

/// One endpoint's failure.
struct Attempt {
    failure: Failure,
    /// Whether another endpoint may do better.
    another: bool,
}

/// Whether a failure says something of the endpoint, and nothing of the request or of this pod.
fn concerns_the_endpoint(error: &OpenError) -> bool {
    match error {
        OpenError::Connect { .. } | OpenError::Session(_) | OpenError::Broken { .. } => true,
        OpenError::Status { status, .. } => *status == http::StatusCode::SERVICE_UNAVAILABLE,
        OpenError::Certificate(_) | OpenError::Request(_) => false,
    }
}

fn flag_of(error: &OpenError) -> ResponseFlag {
    use crate::session::SessionError;
    match error {
        OpenError::Certificate(_) => ResponseFlag::IdentityError,
        OpenError::Connect { error, .. } if error.kind() == std::io::ErrorKind::TimedOut => {
            ResponseFlag::NetworkPolicy
        }
        OpenError::Connect { .. } => ResponseFlag::Connect,
        OpenError::Session(error) => match **error {
            SessionError::Tls { .. } | SessionError::Timeout(_) => ResponseFlag::TlsFailure,
            SessionError::Http { .. } => ResponseFlag::H2HandshakeFailure,
            SessionError::Identity { .. } => ResponseFlag::IdentityError,
        },
        OpenError::Status { status, .. } if *status == http::StatusCode::UNAUTHORIZED => {
            ResponseFlag::Deny
        }
        OpenError::Status { status, .. } if *status == http::StatusCode::SERVICE_UNAVAILABLE => {
            ResponseFlag::Connect
        }
        OpenError::Status { .. } | OpenError::Broken { .. } | OpenError::Request(_) => {
            ResponseFlag::None
        }
    }
}
