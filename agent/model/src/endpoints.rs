//! A service ready to be asked: its endpoints for each port, grouped by place when the snapshot is built,
//! so that a choice costs the same whatever the number of endpoints.
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use rand::Rng;

use crate::{
    balance::{Load, choose},
    identity::Identity,
    route::Destination,
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

/// A service with its endpoints.
pub(crate) struct Front {
    pub(crate) service: Arc<Service>,
    scopes: Vec<Scope>,
    ports: HashMap<u16, HashMap<Arc<str>, Pool>>,
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
    pub(crate) fn new(service: &Arc<Service>, members: &HashMap<Arc<str>, Arc<Member>>) -> Self {
        let endpoints = eligible(service, members);
        let scopes = scopes(&service.preference);
        // Of two entries for one port the first counts, as in `Service::port`.
        let listed = service.ports.iter().rev();
        let ports = listed
            .map(|port| (port.port, pools(port, &endpoints, &scopes)))
            .collect();
        Self {
            service: Arc::clone(service),
            scopes,
            ports,
        }
    }

    /// Chooses an endpoint on the source's network for a port that the service lists.
    ///
    /// Endpoints that failed lately come last, but before none: first the nearest that did not fail,
    /// then those farther away that the preference admits, then the nearest that failed.
    pub(crate) fn choose(
        &self,
        port: u16,
        wish: &Wish<'_>,
        rng: &mut impl Rng,
    ) -> Option<Destination> {
        let pool = self.ports.get(&port)?.get(&wish.source.network)?;
        let circles = self.circles(pool, wish.source);
        let untried = |candidate: &Candidate| !wish.tried.contains(&candidate.member.workload.uid);
        let well =
            |candidate: &Candidate| untried(candidate) && !candidate.member.load.avoided(wish.now);
        let chosen = circles
            .iter()
            .find_map(|circle| pick(circle, well, rng))
            .or_else(|| circles.iter().find_map(|circle| pick(circle, untried, rng)))?;
        chosen.destination(&self.service, wish.address)
    }

    /// The circles that a source may choose from, nearest first.
    fn circles<'a>(&self, outermost: &'a Pool, source: &Workload) -> Vec<&'a [Arc<Candidate>]> {
        let mut circles: Vec<&[Arc<Candidate>]> = vec![&outermost.members];
        let mut pool = outermost;
        for scope in &self.scopes {
            let Some(nearer) = pool.nearer.get(part(source, *scope)) else {
                break;
            };
            circles.push(&nearer.members);
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
struct Candidate {
    member: Arc<Member>,
    port: u16,
    expected: Arc<[Identity]>,
}

impl Candidate {
    fn destination(&self, service: &Arc<Service>, wanted: IpAddr) -> Option<Destination> {
        let address = self.member.workload.address_for(wanted)?;
        Some(Destination {
            workload: Arc::clone(&self.member.workload),
            service: Some(Arc::clone(service)),
            address: SocketAddr::new(address, self.port),
            expected: Arc::clone(&self.expected),
            load: Arc::clone(&self.member.load),
        })
    }
}

/// The endpoints of one service port on one network, as circles around every place: the outermost holds
/// all, each further one those that share one more scope with the place that its path names.
#[derive(Default)]
struct Pool {
    members: Vec<Arc<Candidate>>,
    nearer: HashMap<Arc<str>, Pool>,
}

impl Pool {
    fn add(&mut self, candidate: &Arc<Candidate>, path: &[Scope]) {
        self.members.push(Arc::clone(candidate));
        if let [scope, inner @ ..] = path {
            let part = Arc::clone(part(&candidate.member.workload, *scope));
            self.nearer.entry(part).or_default().add(candidate, inner);
        }
    }
}

fn pick<'a>(
    circle: &'a [Arc<Candidate>],
    fits: impl Fn(&Candidate) -> bool,
    rng: &mut impl Rng,
) -> Option<&'a Arc<Candidate>> {
    choose(
        circle,
        |candidate| fits(candidate),
        |candidate| candidate.member.load.open(),
        rng,
    )
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

/// An endpoint that may serve: its member, the identities it may prove, its ports.
struct Eligible<'a> {
    member: &'a Arc<Member>,
    expected: Arc<[Identity]>,
    endpoint: &'a ServiceEndpoint,
}

fn eligible<'a>(
    service: &'a Service,
    members: &'a HashMap<Arc<str>, Arc<Member>>,
) -> Vec<Eligible<'a>> {
    let serves = |member: &Member| {
        let healthy = member.workload.health == Health::Healthy
            || service.health_policy == HealthPolicy::AllowAll;
        healthy && !member.workload.addresses.is_empty()
    };
    let known = service.endpoints.iter().filter_map(|endpoint| {
        let member = members
            .get(&endpoint.workload)
            .filter(|member| serves(member))?;
        Some(Eligible {
            member,
            expected: expected(member, service),
            endpoint,
        })
    });
    known.collect()
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

fn pools(
    port: &ServicePort,
    endpoints: &[Eligible<'_>],
    scopes: &[Scope],
) -> HashMap<Arc<str>, Pool> {
    let mut pools: HashMap<Arc<str>, Pool> = HashMap::new();
    for eligible in endpoints {
        let Some(target) = eligible.endpoint.target(port) else {
            continue;
        };
        let candidate = Arc::new(Candidate {
            member: Arc::clone(eligible.member),
            port: target,
            expected: Arc::clone(&eligible.expected),
        });
        let network = Arc::clone(&eligible.member.workload.network);
        pools.entry(network).or_default().add(&candidate, scopes);
    }
    pools
}
