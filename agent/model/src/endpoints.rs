//! A service ready to be asked: its endpoints for each port, grouped by place when the snapshot is built,
//! so that a choice costs the same whatever the number of endpoints.
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::Instant,
};

use rand::Rng;

use crate::{
    balance::{Choosable, Load, Lots},
    identity::Identity,
    route::{HBONE_PORT, Refusal},
    service::{HealthPolicy, Preference, Scope, Service, ServiceEndpoint, ServicePort},
    workload::{Health, Workload},
};

/// A workload of the snapshot, with what is shared between snapshots.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) workload: Arc<Workload>,
    pub(crate) load: Arc<Load>,
    /// Its own identity alone.
    pub(crate) identity: Arc<[Identity]>,
}

/// Workloads by uid.
pub(crate) type Members = HashMap<Arc<str>, Arc<Member>>;

/// A service with its endpoints.
pub(crate) struct Front {
    pub(crate) service: Arc<Service>,
    /// What the mesh knew of each endpoint, in the order of [`Service::endpoints`].
    joined: Box<[Option<Arc<Member>>]>,
    scopes: Vec<Scope>,
    ports: HashMap<u16, Port>,
}

/// What a choice depends on beside the service.
#[derive(Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// Who connects.
    pub(crate) source: &'a Workload,
    /// Address that was asked for.
    pub(crate) address: IpAddr,
    /// Workloads that are not to be chosen again, by uid.
    pub(crate) tried: &'a [Arc<str>],
    /// Time of the choice.
    pub(crate) now: Instant,
}

impl Front {
    /// Joins a service with those of its endpoints that may serve.
    pub(crate) fn new(service: &Arc<Service>, members: &Members) -> Self {
        let listed = service.endpoints.iter();
        let joined: Box<[_]> = listed
            .map(|endpoint| members.get(&endpoint.workload).cloned())
            .collect();
        let endpoints = eligible(service, &joined);
        let scopes = scopes(&service.preference);
        let ports = ports(service, &endpoints, &scopes);
        Self {
            service: Arc::clone(service),
            joined,
            scopes,
            ports,
        }
    }

    /// Whether [`Self::new`] would come to the same.
    pub(crate) fn is_current(&self, service: &Arc<Service>, members: &Members) -> bool {
        let mut joined = service.endpoints.iter().zip(&self.joined);
        Arc::ptr_eq(service, &self.service)
            && joined.all(
                |(endpoint, joined)| match (members.get(&endpoint.workload), joined) {
                    (Some(member), Some(joined)) => Arc::ptr_eq(member, joined),
                    (member, joined) => member.is_none() && joined.is_none(),
                },
            )
    }

    /// Whether a workload is one of the endpoints.
    pub(crate) fn holds(&self, uid: &str) -> bool {
        let mut endpoints = self.service.endpoints.iter();
        endpoints.any(|endpoint| &*endpoint.workload == uid)
    }

    /// Chooses an endpoint on the source's network.
    ///
    /// Endpoints that failed lately come last, but before none: first the nearest that did not fail,
    /// then those farther away that the preference admits, then the nearest that failed.
    ///
    /// # Errors
    /// When the service has no such port, or nothing (more) to offer on it.
    pub(crate) fn choose(
        &self,
        port: u16,
        wish: &Wish<'_>,
        rng: &mut impl Rng,
    ) -> Result<&Arc<Candidate>, Refusal> {
        let service = || Arc::clone(&self.service.hostname);
        let Some(listed) = self.ports.get(&port) else {
            let service = service();
            return Err(Refusal::NoPort { service, port });
        };
        let here = listed.pools.get(&wish.source.network);
        if let Some(chosen) = here.and_then(|pool| self.pick(pool, wish, rng)) {
            return Ok(chosen);
        }
        let mut beyond = listed.beyond.iter();
        Err(
            match beyond.find(|network| **network != wish.source.network) {
                Some(network) => Refusal::OtherNetwork {
                    service: service(),
                    network: Arc::clone(network),
                },
                None => Refusal::NoEndpoint {
                    service: service(),
                    port,
                },
            },
        )
    }

    fn pick<'a>(
        &self,
        pool: &'a Pool,
        wish: &Wish<'_>,
        rng: &mut impl Rng,
    ) -> Option<&'a Arc<Candidate>> {
        let circles = self.circles(pool, wish.source);
        let untried =
            |candidate: &Arc<Candidate>| !wish.tried.contains(&candidate.member.workload.uid);
        let well = |candidate: &Arc<Candidate>| {
            untried(candidate) && !candidate.member.load.avoided(wish.now)
        };
        circles
            .iter()
            .find_map(|circle| circle.choose(well, rng))
            .or_else(|| {
                circles
                    .iter()
                    .find_map(|circle| circle.choose(untried, rng))
            })
    }

    /// The circles that a source may choose from, nearest first.
    fn circles<'a>(&self, outermost: &'a Pool, source: &Workload) -> Vec<&'a Lots<Arc<Candidate>>> {
        let mut circles = vec![&outermost.lots];
        let mut pool = outermost;
        for scope in &self.scopes {
            let Some(nearer) = pool.nearer.get(part(source, *scope)) else {
                break;
            };
            circles.push(&nearer.lots);
            pool = nearer;
        }
        circles.reverse();
        if let Preference::Strict(_) = self.service.preference {
            let all_match = circles.len() > self.scopes.len();
            circles.truncate(usize::from(all_match));
        }
        circles
    }
}

/// An endpoint of one service port.
pub(crate) struct Candidate {
    pub(crate) member: Arc<Member>,
    pub(crate) port: u16,
    pub(crate) expected: Arc<[Identity]>,
    weight: NonZeroU32,
}

impl Choosable for Candidate {
    fn weight(&self) -> NonZeroU32 {
        self.weight
    }

    fn open(&self) -> u32 {
        self.member.load.open()
    }
}

/// One port of a service.
#[derive(Default)]
struct Port {
    /// By network, the endpoints with an address there.
    pools: HashMap<Arc<str>, Pool>,
    /// Networks with endpoints that only a gateway leads to.
    beyond: BTreeSet<Arc<str>>,
}

/// The endpoints of one service port on one network, as circles around every place: the outermost holds
/// all, each further one those that share one more scope with the place that its path names.
struct Pool {
    lots: Lots<Arc<Candidate>>,
    nearer: HashMap<Arc<str>, Pool>,
}

impl Pool {
    fn new(candidates: Vec<Arc<Candidate>>, path: &[Scope]) -> Self {
        let mut nearer = HashMap::new();
        if let [scope, inner @ ..] = path {
            nearer = grouped(&candidates, |candidate| {
                Arc::clone(part(&candidate.member.workload, *scope))
            })
            .into_iter()
            .map(|(part, candidates)| (part, Self::new(candidates, inner)))
            .collect();
        }
        Self {
            lots: Lots::new(candidates),
            nearer,
        }
    }
}

fn grouped(
    candidates: &[Arc<Candidate>],
    key: impl Fn(&Candidate) -> Arc<str>,
) -> HashMap<Arc<str>, Vec<Arc<Candidate>>> {
    let mut groups: HashMap<Arc<str>, Vec<Arc<Candidate>>> = HashMap::new();
    for candidate in candidates {
        let group = groups.entry(key(candidate)).or_default();
        group.push(Arc::clone(candidate));
    }
    groups
}

/// The scopes that tell endpoints apart. All candidates are on the source's network, so that scope never
/// does, and a repeated scope has nothing to add.
fn scopes(preference: &Preference) -> Vec<Scope> {
    let (Preference::Strict(listed) | Preference::Failover(listed)) = preference else {
        return Vec::new();
    };
    let mut scopes = Vec::new();
    for scope in listed {
        if *scope != Scope::Network && !scopes.contains(scope) {
            scopes.push(*scope);
        }
    }
    scopes
}

fn part(workload: &Workload, scope: Scope) -> &Arc<str> {
    match scope {
        Scope::Network => &workload.network,
        Scope::Region => &workload.locality.region,
        Scope::Zone => &workload.locality.zone,
        Scope::Subzone => &workload.locality.subzone,
        Scope::Node => &workload.node,
        Scope::Cluster => &workload.cluster,
    }
}

/// An endpoint that may serve: its member, the identities it may prove, its share and ports.
struct Eligible<'a> {
    member: &'a Arc<Member>,
    expected: Arc<[Identity]>,
    weight: NonZeroU32,
    endpoint: &'a ServiceEndpoint,
}

fn eligible<'a>(service: &'a Service, joined: &'a [Option<Arc<Member>>]) -> Vec<Eligible<'a>> {
    let serves = |workload: &Workload| {
        workload.health == Health::Healthy || service.health_policy == HealthPolicy::AllowAll
    };
    let known = service.endpoints.iter().zip(joined);
    known
        .filter_map(|(endpoint, member)| {
            let member = member.as_ref().filter(|member| serves(&member.workload))?;
            Some(Eligible {
                member,
                expected: expected(member, service),
                weight: NonZeroU32::new(member.workload.capacity)?,
                endpoint,
            })
        })
        .collect()
}

fn expected(member: &Member, service: &Service) -> Arc<[Identity]> {
    if service.subject_alt_names.is_empty() {
        return Arc::clone(&member.identity);
    }
    member
        .identity
        .iter()
        .chain(&service.subject_alt_names)
        .cloned()
        .collect()
}

fn ports(service: &Service, endpoints: &[Eligible<'_>], scopes: &[Scope]) -> HashMap<u16, Port> {
    let mut ports = HashMap::new();
    let tunnelled = |eligible: &Eligible<'_>| {
        let port = eligible.member.workload.application_port();
        port.map(|_| HBONE_PORT)
    };
    // Behind an application tunnel the node proxy takes HBONE, though its service does not list the port.
    if endpoints.iter().any(|one| tunnelled(one).is_some()) {
        ports.insert(
            HBONE_PORT,
            self::port(service, endpoints, scopes, tunnelled),
        );
    }
    // Of two entries for one port the first counts, as in `Service::port`.
    for listed in service.ports.iter().rev() {
        let target = |eligible: &Eligible<'_>| target(eligible, listed);
        ports.insert(listed.port, port(service, endpoints, scopes, target));
    }
    ports
}

/// The endpoint's port; one with a port for all traffic needs no mapping.
fn target(eligible: &Eligible<'_>, port: &ServicePort) -> Option<u16> {
    let any = eligible.member.workload.application_port();
    eligible
        .endpoint
        .target(port)
        .or_else(|| any.map(|_| port.port))
}

fn port(
    service: &Service,
    endpoints: &[Eligible<'_>],
    scopes: &[Scope],
    target: impl Fn(&Eligible<'_>) -> Option<u16>,
) -> Port {
    let mut candidates = Vec::new();
    let mut beyond = BTreeSet::new();
    for eligible in endpoints {
        let workload = &eligible.member.workload;
        if workload.network_gateway.is_some() {
            beyond.insert(Arc::clone(&workload.network));
        }
        let mut addresses = workload.addresses.iter();
        let reachable =
            workload.is_named() || addresses.any(|address| service.ip_families.admit(*address));
        if let Some(port) = target(eligible).filter(|_| reachable) {
            candidates.push(Arc::new(Candidate {
                member: Arc::clone(eligible.member),
                port,
                expected: Arc::clone(&eligible.expected),
                weight: eligible.weight,
            }));
        }
    }
    let pools = grouped(&candidates, |candidate| {
        Arc::clone(&candidate.member.workload.network)
    })
    .into_iter()
    .map(|(network, candidates)| (network, Pool::new(candidates, scopes)))
    .collect();
    Port { pools, beyond }
}
