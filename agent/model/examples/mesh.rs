//! Measures the snapshot of a mesh: how long the first one takes, and the next one after one workload has changed.
//!
//! `cargo run --release -p undermesh-model --example mesh -- [workloads] [services] [snapshots]`
use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use undermesh_model::{
    Identity, Locality, Mesh, MeshBuilder, Service, ServicePort, TrustDomain, Tunnel, Workload,
    service::{AppProtocol, HealthPolicy, IpFamilies, Preference, ServiceEndpoint, Visibility},
    workload::{DEFAULT_CAPACITY, Health, NetworkMode, WorkloadKind},
};

/// The first address of a workload (10.128.0.0/9).
const FIRST_WORKLOAD: u32 = 0x0a80_0000;
/// The first address of a service (10.96.0.0/13).
const FIRST_SERVICE: u32 = 0x0a60_0000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = [50_000, 5_000, 20];
    for (place, argument) in numbers.iter_mut().zip(std::env::args().skip(1)) {
        *place = argument.parse()?;
    }
    let [workloads, services, snapshots] = numbers.map(|number: u32| number.max(1));
    let each = workloads.div_ceil(services);
    let mut builder = MeshBuilder::default();
    for number in 0..workloads {
        builder.workloads.push(Arc::new(workload(number, 0)?));
    }
    for number in 0..services {
        let endpoints = number * each..((number + 1) * each).min(workloads);
        builder.services.push(Arc::new(service(number, endpoints)));
    }
    let begun = Instant::now();
    let mut mesh = builder.clone().build(&Mesh::empty());
    println!("first snapshot: {:?}", begun.elapsed());
    let begun = Instant::now();
    for snapshot in 1..=snapshots {
        let number = snapshot % workloads;
        builder.workloads[number as usize] = Arc::new(workload(number, snapshot)?);
        mesh = builder.clone().build(&mesh);
    }
    println!("each next one: {:?}", begun.elapsed() / snapshots);
    Ok(())
}

fn uid(number: u32) -> Arc<str> {
    let namespace = number % 100;
    format!("Kubernetes//Pod/team-{namespace}/service-7d4b9c6f5-{number}").into()
}

fn workload(number: u32, version: u32) -> Result<Workload, Box<dyn Error>> {
    let namespace = format!("team-{}", number % 100);
    Ok(Workload {
        uid: uid(number),
        name: format!("service-7d4b9c6f5-{number}").into(),
        identity: Identity::new(TrustDomain::cluster_local(), &namespace, "service")?,
        namespace: namespace.into(),
        addresses: vec![IpAddr::from(Ipv4Addr::from(FIRST_WORKLOAD + number))],
        network: "".into(),
        tunnel: Tunnel::Hbone,
        node: format!("node-{}", number % 1000).into(),
        canonical_name: "service".into(),
        canonical_revision: format!("v{version}").into(),
        workload_name: "service".into(),
        workload_kind: WorkloadKind::Deployment,
        locality: Locality::default(),
        health: Health::Healthy,
        cluster: "Kubernetes".into(),
        policies: Vec::new(),
        hostname: "".into(),
        network_mode: NetworkMode::Standard,
        capacity: DEFAULT_CAPACITY,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        native_tunnel: false,
    })
}

fn service(number: u32, endpoints: std::ops::Range<u32>) -> Service {
    let namespace = format!("team-{}", number % 100);
    let address = IpAddr::from(Ipv4Addr::from(FIRST_SERVICE + number));
    Service {
        name: format!("service-{number}").into(),
        hostname: format!("service-{number}.{namespace}.svc.cluster.local").into(),
        namespace: namespace.into(),
        network: "".into(),
        addresses: vec![address.into()],
        ports: vec![ServicePort {
            port: 80,
            target_port: Some(8080),
            name: "tcp-main".into(),
            protocol: AppProtocol::Unknown,
        }],
        preference: Preference::None,
        health_policy: HealthPolicy::OnlyHealthy,
        subject_alt_names: Vec::new(),
        canonical: true,
        visibility: Visibility::Public,
        ip_families: IpFamilies::Automatic,
        waypoint: None,
        weighted_waypoints: Vec::new(),
        ingress_use_waypoint: false,
        endpoints: endpoints
            .map(|number| ServiceEndpoint {
                workload: uid(number),
                ports: Vec::new(),
            })
            .collect(),
    }
}
