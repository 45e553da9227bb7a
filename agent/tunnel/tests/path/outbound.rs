//! Outbound connections: through waypoints, on demand, by name.
use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};

use futures::future::{BoxFuture, FutureExt as _, ready};
use undermesh_model::{HBONE_PORT, Service, Workload, workload::ApplicationTunnel};
use undermesh_telemetry::{Direction, Security};
use undermesh_tunnel::{Resolve, Unanswered};

use crate::{
    Test,
    bed::{Application, Bed, World, gateway, hang_up, named, service, talk, workload},
};

pub const TESTS: &[Test] = &[
    (
        "a_service_is_reached_through_its_waypoint",
        a_service_is_reached_through_its_waypoint,
    ),
    (
        "a_pod_is_reached_through_its_waypoint",
        a_pod_is_reached_through_its_waypoint,
    ),
    (
        "nothing_goes_past_a_waypoint_that_is_not_there",
        nothing_goes_past_a_waypoint_that_is_not_there,
    ),
    (
        "an_unknown_address_is_asked_for_once_it_is_needed",
        an_unknown_address_is_asked_for_once_it_is_needed,
    ),
    (
        "an_address_outside_the_mesh_is_passed_through_once_that_is_known",
        an_address_outside_the_mesh_is_passed_through_once_that_is_known,
    ),
    (
        "nothing_is_sent_in_clear_while_nobody_knows_the_address",
        nothing_is_sent_in_clear_while_nobody_knows_the_address,
    ),
    (
        "an_unknown_waypoint_is_asked_for",
        an_unknown_waypoint_is_asked_for,
    ),
    (
        "a_workload_with_a_name_alone_is_resolved",
        a_workload_with_a_name_alone_is_resolved,
    ),
];

/// A waypoint whose proxy listens on 15088 behind the node proxy, and wants to be told of its clients.
fn waypoint() -> Workload {
    Workload {
        application_tunnel: Some(ApplicationTunnel {
            proxy_protocol: true,
            port: Some(15088),
        }),
        ..workload("waypoint", "10.0.0.9")
    }
}

fn through_waypoint(service: Service) -> Service {
    Service {
        waypoint: Some(gateway("waypoint")),
        ..service
    }
}

/// The end of a PROXY header of a connection to `asked` from the pod `client`.
fn told(header: &[u8], asked: &[u8]) {
    assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(header[13], 0x11, "TCP over IPv4");
    assert_eq!(header[20..24], asked[..4], "the address that was asked for");
    assert_eq!(header[26..28], asked[4..], "its port");
    let identity = b"spiffe://cluster.local/ns/shop/sa/client";
    assert_eq!(header[28..31], [0xd0, 0, identity.len() as u8]);
    assert_eq!(&header[31..31 + identity.len()], identity);
}

fn a_service_is_reached_through_its_waypoint() {
    let (client, web, waypoint) = (
        workload("client", "10.0.0.1"),
        workload("web", "10.0.0.2"),
        waypoint(),
    );
    let front = through_waypoint(service("web", "10.96.0.1", (80, 8080), &web));
    let world = World::new();
    let itself = service("waypoint", "10.96.0.9", (80, 80), &waypoint);
    world.learn(&[&client, &web, &waypoint], &[&front, &itself]);
    let bed = Bed::new(&world, None);
    bed.serve(&waypoint);
    let proxy = Application::at("127.0.0.1:15088");
    let mut stream = bed.connect(bed.serve(&client), "10.96.0.1:80");
    talk(&mut stream).unwrap();
    told(&proxy.received(), &[10, 96, 0, 1, 0, 80]);
    let seen = bed.open(Direction::Outbound).destination;
    assert_eq!(seen.address, (waypoint.addresses[0], HBONE_PORT).into());
    assert_eq!(seen.hbone_address.as_deref(), Some("10.96.0.1:80"));
    assert_eq!(seen.service.as_deref(), Some("web.shop"));
    assert_eq!(seen.workload.as_deref(), Some("waypoint"));
}

fn a_pod_is_reached_through_its_waypoint() {
    let (client, waypoint) = (workload("client", "10.0.0.1"), waypoint());
    let web = Workload {
        waypoint: Some(gateway("waypoint")),
        ..workload("web", "10.0.0.2")
    };
    let world = World::new();
    let itself = service("waypoint", "10.96.0.9", (80, 80), &waypoint);
    world.learn(&[&client, &web, &waypoint], &[&itself]);
    let bed = Bed::new(&world, None);
    bed.serve(&waypoint);
    let proxy = Application::at("127.0.0.1:15088");
    let mut stream = bed.connect(bed.serve(&client), "10.0.0.2:8080");
    talk(&mut stream).unwrap();
    told(&proxy.received(), &[10, 0, 0, 2, 0x1f, 0x90]);
}

fn nothing_goes_past_a_waypoint_that_is_not_there() {
    let (client, web) = (workload("client", "10.0.0.1"), workload("web", "10.0.0.2"));
    let front = through_waypoint(service("web", "10.96.0.1", (80, 8080), &web));
    let world = World::new();
    world.learn(&[&client, &web], &[&front]);
    let bed = Bed::new(&world, None);
    bed.serve(&web);
    let (captured, application) = (bed.serve(&client), Application::at("10.0.0.2:8080"));
    talk(&mut bed.connect(captured, "10.96.0.1:80")).unwrap_err();
    // Known, but not running: no listener takes HBONE there.
    let waypoint = waypoint();
    let itself = service("waypoint", "10.96.0.9", (80, 80), &waypoint);
    world.learn(&[&waypoint], &[&itself]);
    talk(&mut bed.connect(captured, "10.96.0.1:80")).unwrap_err();
    assert!(application.was_left_alone());
}

/// A control plane that tells a part of the mesh when it is asked the right question, or gives no answer.
struct Demand {
    world: World,
    question: &'static str,
    workloads: Vec<Workload>,
    services: Vec<Service>,
    answers: bool,
    asked: Mutex<Vec<String>>,
}

impl Demand {
    fn told(
        world: &World,
        question: &'static str,
        workloads: &[&Workload],
        services: &[&Service],
    ) -> Arc<Self> {
        Arc::new(Self {
            world: world.clone(),
            question,
            workloads: workloads.iter().copied().cloned().collect(),
            services: services.iter().copied().cloned().collect(),
            answers: true,
            asked: Mutex::default(),
        })
    }

    fn down(world: &World) -> Arc<Self> {
        let mut demand = Self::told(world, "", &[], &[]);
        Arc::get_mut(&mut demand).unwrap().answers = false;
        demand
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn answer(&self, question: String) -> BoxFuture<'static, Result<(), Unanswered>> {
        if question == self.question {
            let workloads: Vec<&Workload> = self.workloads.iter().collect();
            let services: Vec<&Service> = self.services.iter().collect();
            self.world.learn(&workloads, &services);
        }
        self.asked.lock().unwrap().push(question);
        let answer = if self.answers {
            Ok(())
        } else {
            Err(Unanswered("it is down".to_owned()))
        };
        ready(answer).boxed()
    }
}

impl Resolve for Demand {
    fn resolve_address<'a>(
        &'a self,
        _: &'a str,
        address: IpAddr,
    ) -> BoxFuture<'a, Result<(), Unanswered>> {
        self.answer(address.to_string())
    }

    fn resolve_host<'a>(
        &'a self,
        namespace: &'a str,
        hostname: &'a str,
    ) -> BoxFuture<'a, Result<(), Unanswered>> {
        self.answer(format!("{namespace}/{hostname}"))
    }
}

fn an_unknown_address_is_asked_for_once_it_is_needed() {
    let (client, web) = (workload("client", "10.0.0.1"), workload("web", "10.0.0.2"));
    let world = World::new();
    world.learn(&[&client], &[]);
    let demand = Demand::told(&world, "10.0.0.2", &[&web], &[]);
    let bed = Bed::new(&world, Some(Arc::clone(&demand) as Arc<dyn Resolve>));
    bed.serve(&web);
    let (captured, application) = (bed.serve(&client), Application::at("10.0.0.2:8080"));
    for _ in 0..2 {
        let mut stream = bed.connect(captured, "10.0.0.2:8080");
        talk(&mut stream).unwrap();
        assert_eq!(application.received(), b"hello");
        assert_eq!(bed.open(Direction::Outbound).security, Security::MutualTls);
        assert_eq!(demand.asked(), ["10.0.0.2"]);
        hang_up(stream);
        bed.wait_until_closed();
    }
}

fn an_address_outside_the_mesh_is_passed_through_once_that_is_known() {
    let client = workload("client", "10.0.0.1");
    let world = World::new();
    world.learn(&[&client], &[]);
    let demand = Demand::told(&world, "nothing", &[], &[]);
    let bed = Bed::new(&world, Some(Arc::clone(&demand) as Arc<dyn Resolve>));
    let application = Application::at("10.0.0.3:8080");
    let mut stream = bed.connect(bed.serve(&client), "10.0.0.3:8080");
    talk(&mut stream).unwrap();
    assert_eq!(application.received(), b"hello");
    assert_eq!(bed.open(Direction::Outbound).security, Security::Unknown);
    assert_eq!(demand.asked(), ["10.0.0.3"]);
}

fn nothing_is_sent_in_clear_while_nobody_knows_the_address() {
    let client = workload("client", "10.0.0.1");
    let world = World::new();
    world.learn(&[&client], &[]);
    let demand = Demand::down(&world);
    let bed = Bed::new(&world, Some(Arc::clone(&demand) as Arc<dyn Resolve>));
    let application = Application::at("10.0.0.3:8080");
    talk(&mut bed.connect(bed.serve(&client), "10.0.0.3:8080")).unwrap_err();
    assert_eq!(demand.asked(), ["10.0.0.3"]);
    assert!(application.was_left_alone());
}

fn an_unknown_waypoint_is_asked_for() {
    let (client, web, waypoint) = (
        workload("client", "10.0.0.1"),
        workload("web", "10.0.0.2"),
        waypoint(),
    );
    let front = through_waypoint(service("web", "10.96.0.1", (80, 8080), &web));
    let itself = service("waypoint", "10.96.0.9", (80, 80), &waypoint);
    let world = World::new();
    world.learn(&[&client, &web], &[&front]);
    let demand = Demand::told(&world, "shop/waypoint.shop", &[&waypoint], &[&itself]);
    let bed = Bed::new(&world, Some(Arc::clone(&demand) as Arc<dyn Resolve>));
    bed.serve(&waypoint);
    let proxy = Application::at("127.0.0.1:15088");
    let mut stream = bed.connect(bed.serve(&client), "10.96.0.1:80");
    talk(&mut stream).unwrap();
    told(&proxy.received(), &[10, 96, 0, 1, 0, 80]);
    assert_eq!(demand.asked(), ["shop/waypoint.shop"]);
}

fn a_workload_with_a_name_alone_is_resolved() {
    let (client, outside) = (workload("client", "10.0.0.1"), named("db", "localhost"));
    let front = service("db", "10.96.0.1", (80, 8080), &outside);
    let world = World::new();
    world.learn(&[&client, &outside], &[&front]);
    let bed = Bed::new(&world, None);
    let application = Application::at("127.0.0.1:8080");
    let mut stream = bed.connect(bed.serve(&client), "10.96.0.1:80");
    talk(&mut stream).unwrap();
    assert_eq!(application.received(), b"hello");
    assert_eq!(
        bed.open(Direction::Outbound).destination.address,
        "127.0.0.1:8080".parse().unwrap()
    );
}
