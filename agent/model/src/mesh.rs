//! The snapshot of the mesh: every lookup is a hash lookup, whatever the mesh's size.
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};

use crate::{
    endpoints::{Front, Member, Members},
    network::{Network, standing},
    policy::{Policy, Request, Verdict},
    rulebook::Rulebook,
    service::Service,
    workload::Workload,
};

/// An immutable view of all that is known.
#[derive(Default)]
pub struct Mesh {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    policies: Vec<Arc<Policy>>,
    members: Members,
    names: HashMap<Arc<str>, HashMap<Arc<str>, Arc<Workload>>>,
    /// By namespace and hostname.
    fronts: HashMap<Arc<str>, HashMap<Arc<str>, Arc<Front>>>,
    hostnames: HashMap<Arc<str>, Arc<Service>>,
    networks: HashMap<Arc<str>, Network>,
    rulebook: Rulebook,
}

impl Mesh {
    /// A mesh that holds nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Starts the next snapshot.
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// The workload with a uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.members.get(uid).map(|member| &member.workload)
    }

    /// The workload with a name; a pod before an entry of the same name.
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.names.get(namespace)?.get(name)
    }

    /// The workload that has an address on a network; of several a pod first, then one in the mesh.
    pub fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        self.member_at(network, address)
            .map(|member| &member.workload)
    }

    /// The service that has a virtual address on a network, as a client in `client_namespace` sees it: an
    /// exact address before a range, then a service of the client's namespace, then the longest prefix,
    /// then the canonical one.
    pub fn service_at(
        &self,
        network: &str,
        address: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<Service>> {
        self.front_at(network, address, client_namespace)
            .map(|front| &front.service)
    }

    /// The service with a hostname; of several the canonical one.
    pub fn service_named(&self, hostname: &str) -> Option<&Arc<Service>> {
        self.hostnames.get(hostname)
    }

    /// The service that a peer means by a hostname when it asks a workload in `namespace` for it: the
    /// namespace's own, then the canonical one, where it is visible there.
    pub fn service_meant(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let own = self.front_named(namespace, hostname);
        own.map(|front| &front.service).or_else(|| {
            self.service_named(hostname)
                .filter(|service| service.is_visible_to(namespace))
        })
    }

    /// The policy with a key, `<namespace>/<name>`.
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.rulebook.policy(key)
    }

    /// All workloads, in the order of their uids.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// All services, in the order of their keys.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// All policies, in the order of their keys.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// Judges a new connection to `destination` by every policy that governs it.
    ///
    /// Any DENY match refuses; without ALLOW policies everything else goes through; with them one must
    /// match (`istio.security.Authorization`). A policy that the workload names and the mesh does not
    /// hold refuses too, see [`crate::Decision::Unenforceable`].
    pub fn evaluate(&self, destination: &Workload, request: &Request<'_>) -> Verdict {
        self.rulebook.evaluate(destination, request)
    }

    pub(crate) fn member_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Member>> {
        self.networks.get(network)?.member(address)
    }

    pub(crate) fn front_at(
        &self,
        network: &str,
        address: IpAddr,
        namespace: &str,
    ) -> Option<&Arc<Front>> {
        self.networks.get(network)?.front(address, namespace)
    }

    pub(crate) fn front_named(&self, namespace: &str, hostname: &str) -> Option<&Arc<Front>> {
        self.fronts.get(namespace)?.get(hostname)
    }

    fn add_workload(&mut self, member: Arc<Member>) {
        let workload = Arc::clone(&member.workload);
        self.networks
            .entry(Arc::clone(&workload.network))
            .or_default()
            .add_member(&member);
        let names = self
            .names
            .entry(Arc::clone(&workload.namespace))
            .or_default();
        let holder = names
            .entry(Arc::clone(&workload.name))
            .or_insert_with(|| Arc::clone(&workload));
        if standing(&workload) > standing(holder) {
            *holder = Arc::clone(&workload);
        }
        self.members.insert(Arc::clone(&workload.uid), member);
        self.workloads.push(workload);
    }

    fn add_service(&mut self, service: &Arc<Service>, previous: &Mesh) {
        let front = match previous.front_named(&service.namespace, &service.hostname) {
            Some(front) if front.is_current(service, &self.members) => Arc::clone(front),
            _ => Arc::new(Front::new(service, &self.members)),
        };
        let network = self
            .networks
            .entry(Arc::clone(&service.network))
            .or_default();
        for address in &service.addresses {
            network.add_front(*address, &front);
        }
        self.hostnames
            .entry(Arc::clone(&service.hostname))
            .or_insert_with(|| Arc::clone(service));
        self.fronts
            .entry(Arc::clone(&service.namespace))
            .or_default()
            .insert(Arc::clone(&service.hostname), front);
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("workloads", &self.workloads.len())
            .field("services", &self.services.len())
            .field("policies", &self.policies.len())
            .finish()
    }
}

/// The parts of the next snapshot. Of two parts with the same key the later one counts.
#[derive(Clone, Debug, Default)]
pub struct MeshBuilder {
    /// All workloads.
    pub workloads: Vec<Arc<Workload>>,
    /// All services.
    pub services: Vec<Arc<Service>>,
    /// All policies.
    pub policies: Vec<Arc<Policy>>,
}

impl MeshBuilder {
    /// Builds the indices. A workload that was in `previous` with the same addresses keeps its [`crate::Load`];
    /// one with other addresses is another machine under the same name. A part that is the very same [`Arc`]
    /// as in `previous` costs little.
    pub fn build(self, previous: &Mesh) -> Mesh {
        let mut mesh = Mesh::empty();
        for workload in unique(self.workloads, |workload| Arc::clone(&workload.uid)) {
            mesh.add_workload(carried(previous, workload));
        }
        mesh.services = unique(self.services, Service::key);
        let (canonical, others): (Vec<_>, Vec<_>) = mesh
            .services
            .iter()
            .cloned()
            .partition(|service| service.canonical);
        for service in canonical.iter().chain(&others) {
            mesh.add_service(service, previous);
        }
        mesh.policies = unique(self.policies, Policy::key);
        mesh.rulebook = Rulebook::new(mesh.policies.iter());
        mesh
    }
}

fn unique<T, K: Ord>(parts: Vec<Arc<T>>, key: impl Fn(&T) -> K) -> Vec<Arc<T>> {
    let by_key: BTreeMap<K, Arc<T>> = parts.into_iter().map(|part| (key(&part), part)).collect();
    by_key.into_values().collect()
}

/// The workload's member, with what is to outlive the snapshot.
fn carried(previous: &Mesh, workload: Arc<Workload>) -> Arc<Member> {
    let known = previous.members.get(&workload.uid);
    if let Some(member) = known.filter(|member| Arc::ptr_eq(&member.workload, &workload)) {
        return Arc::clone(member);
    }
    let same = known.filter(|member| {
        member.workload.addresses == workload.addresses
            && member.workload.hostname == workload.hostname
            && member.workload.network == workload.network
    });
    Arc::new(Member {
        load: same
            .map(|member| Arc::clone(&member.load))
            .unwrap_or_default(),
        identity: Arc::from([workload.identity.clone()]),
        workload,
    })
}

/// The current snapshot, shared by readers that never lock and a writer that swaps in the next one.
#[derive(Clone, Debug)]
pub struct SharedMesh(Arc<Current>);

#[derive(Debug)]
struct Current {
    mesh: ArcSwap<Mesh>,
    generation: AtomicU64,
}

impl SharedMesh {
    /// Shares a first snapshot, generation 0.
    pub fn new(mesh: Mesh) -> Self {
        Self(Arc::new(Current {
            mesh: ArcSwap::from_pointee(mesh),
            generation: AtomicU64::new(0),
        }))
    }

    /// The current snapshot for a short look; cheaper than [`Self::snapshot`].
    pub fn load(&self) -> Guard<Arc<Mesh>> {
        self.0.mesh.load()
    }

    /// The current snapshot to keep.
    pub fn snapshot(&self) -> Arc<Mesh> {
        self.0.mesh.load_full()
    }

    /// Makes `mesh` the current snapshot.
    pub fn replace(&self, mesh: Mesh) {
        self.0.mesh.store(Arc::new(mesh));
        self.0.generation.fetch_add(1, Ordering::Release);
    }

    /// How often the snapshot was replaced. Who sees a number also sees the snapshot it stands for, or a later one.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixture::{mesh, pod, service},
        workload::Tunnel,
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn finds_workloads_by_uid_name_and_address() {
        let web = pod("web", &["10.0.0.1", "fd00::1"]);
        let mesh = mesh(&[&web], &[]);
        assert_eq!(**mesh.workload("c//Pod/shop/web").unwrap(), web);
        assert_eq!(**mesh.workload_named("shop", "web").unwrap(), web);
        for address in ["10.0.0.1", "fd00::1", "::ffff:10.0.0.1"] {
            assert_eq!(
                **mesh.workload_at("", ip(address)).unwrap(),
                web,
                "{address}"
            );
        }
        assert_eq!(mesh.workload_at("other", ip("10.0.0.1")), None);
        assert_eq!(mesh.workload_at("", ip("10.0.0.2")), None);
    }

    #[test]
    fn a_pod_holds_its_address_and_name_against_an_entry_and_a_mesh_pod_against_others() {
        let entry = Workload {
            uid: "c/networking.istio.io/WorkloadEntry/shop/web".into(),
            ..pod("web", &["10.0.0.1"])
        };
        let host = Workload {
            tunnel: Tunnel::None,
            ..pod("a", &["10.0.0.1"])
        };
        let web = pod("web", &["10.0.0.1"]);
        for order in [[&entry, &host, &web], [&web, &host, &entry]] {
            let mesh = mesh(&order, &[]);
            assert_eq!(mesh.workload_at("", ip("10.0.0.1")).unwrap().uid, web.uid);
            assert_eq!(mesh.workload_named("shop", "web").unwrap().uid, web.uid);
        }
    }

    #[test]
    fn of_services_with_one_address_the_clients_own_comes_first_then_the_canonical_one() {
        let mut bank = service("a", &["10.96.0.1"], &[]);
        (bank.namespace, bank.canonical) = ("bank".into(), false);
        let shop = service("b", &["10.96.0.1"], &[]);
        let mesh = mesh(&[], &[&bank, &shop]);
        let found = |namespace| {
            &mesh
                .service_at("", ip("10.96.0.1"), namespace)
                .unwrap()
                .namespace
        };
        assert_eq!(&**found("bank"), "bank");
        assert_eq!(&**found("shop"), "shop");
        assert_eq!(&**found("elsewhere"), "shop");
    }

    #[test]
    fn an_exact_address_comes_before_ranges_and_longer_ranges_before_shorter() {
        let wide = service("wide", &["10.0.0.0/8", "fd00::/8"], &[]);
        let narrow = service("narrow", &["10.96.0.0/16"], &[]);
        let exact = service("exact", &["10.96.0.1"], &[]);
        let mut own = service("own", &["10.97.0.0/16", "10.0.0.0/9"], &[]);
        own.namespace = "bank".into();
        let mesh = mesh(&[], &[&wide, &narrow, &exact, &own]);
        let found = |address, namespace| {
            mesh.service_at("", ip(address), namespace)
                .map(|found| &*found.name)
        };
        assert_eq!(found("10.96.0.1", "bank"), Some("exact"));
        assert_eq!(found("10.96.0.2", "shop"), Some("narrow"));
        assert_eq!(found("10.96.0.2", "bank"), Some("own"));
        assert_eq!(found("10.97.0.2", "elsewhere"), Some("own"));
        assert_eq!(found("10.200.0.1", "shop"), Some("wide"));
        assert_eq!(found("fd00::1", "shop"), Some("wide"));
        assert_eq!(found("fe80::1", "shop"), None);
        assert_eq!(found("192.0.2.1", "shop"), None);
    }

    #[test]
    fn of_two_parts_with_one_key_the_later_counts() {
        let (old, new) = (pod("web", &["10.0.0.1"]), pod("web", &["10.0.0.2"]));
        let mesh = mesh(&[&old, &new], &[]);
        assert_eq!(mesh.workloads().len(), 1);
        assert_eq!(mesh.workload_at("", ip("10.0.0.1")), None);
        assert_eq!(**mesh.workload_at("", ip("10.0.0.2")).unwrap(), new);
    }

    #[test]
    fn a_workload_keeps_its_load_in_the_next_snapshot_unless_it_moved() {
        let (web, cart) = (pod("web", &["10.0.0.1"]), pod("cart", &["10.0.0.2"]));
        let first = mesh(&[&web, &cart], &[]);
        let moved = pod("cart", &["10.0.0.3"]);
        let next = MeshBuilder {
            workloads: vec![Arc::new(web), Arc::new(moved)],
            ..MeshBuilder::default()
        }
        .build(&first);
        let load =
            |mesh: &Mesh, address| Arc::clone(&mesh.member_at("", ip(address)).unwrap().load);
        let kept = load(&first, "10.0.0.1").opened();
        let _other = load(&first, "10.0.0.2").opened();
        assert_eq!(load(&next, "10.0.0.1").open(), 1);
        assert_eq!(load(&next, "10.0.0.3").open(), 0);
        drop(kept);
        assert_eq!(load(&next, "10.0.0.1").open(), 0);
    }

    #[test]
    fn what_did_not_change_is_not_built_again() {
        let (web, cart) = (pod("web", &["10.0.0.1"]), pod("cart", &["10.0.0.2"]));
        let fronts = [
            service("web", &["10.96.0.1"], &[&web]),
            service("cart", &["10.96.0.2"], &[&cart]),
        ];
        let first = mesh(&[&web, &cart], &[&fronts[0], &fronts[1]]);
        let mut next = MeshBuilder {
            workloads: first.workloads().cloned().collect(),
            services: first.services().cloned().collect(),
            policies: Vec::new(),
        };
        next.workloads.push(Arc::new(Workload {
            tunnel: Tunnel::None,
            ..cart
        }));
        let next = next.build(&first);
        let same = |address| {
            let front = |mesh: &Mesh| Arc::clone(mesh.front_at("", ip(address), "shop").unwrap());
            Arc::ptr_eq(&front(&first), &front(&next))
        };
        assert!(same("10.96.0.1") && !same("10.96.0.2"));
        let source = first.workload("c//Pod/shop/web").unwrap();
        let mut rng = rand::rng();
        let route = next.route(
            source,
            (ip("10.96.0.2"), 80).into(),
            &[],
            std::time::Instant::now(),
            &mut rng,
        );
        assert!(matches!(route, Ok(crate::Route::Plain(_))), "{route:?}");
    }

    #[test]
    fn a_name_means_the_namespaces_own_service_and_never_one_that_is_hidden_from_it() {
        let mut own = service("web", &[], &[]);
        own.canonical = false;
        let mut hidden = Service {
            namespace: "bank".into(),
            ..own.clone()
        };
        hidden.visibility = crate::service::Visibility::Namespace;
        let mesh = mesh(&[], &[&hidden, &own]);
        let meant = |namespace| {
            mesh.service_meant("web.shop.svc.cluster.local", namespace)
                .map(|service| &*service.namespace)
        };
        assert_eq!(meant("shop"), Some("shop"));
        assert_eq!(meant("bank"), Some("bank"));
        assert_eq!(mesh.service_meant("other.example", "shop"), None);
    }

    #[test]
    fn readers_see_the_snapshot_that_replaced_the_last_one() {
        let shared = SharedMesh::new(Mesh::empty());
        let (reader, before) = (shared.clone(), shared.snapshot());
        shared.replace(mesh(&[&pod("web", &["10.0.0.1"])], &[]));
        assert_eq!(reader.generation(), 1);
        assert_eq!(
            (before.workloads().len(), reader.load().workloads().len()),
            (0, 1)
        );
    }
}
