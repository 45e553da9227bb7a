//! Inbound connections: what is known of who sent them.
use undermesh_telemetry::Direction;

use crate::{
    Test,
    bed::{Application, Bed, World, talk, workload},
};

pub const TESTS: &[Test] = &[(
    "a_client_at_an_unknown_address_is_shown_as_it_describes_itself",
    a_client_at_an_unknown_address_is_shown_as_it_describes_itself,
)];

fn a_client_at_an_unknown_address_is_shown_as_it_describes_itself() {
    // The namespace has no way to the client's address, so what it sends comes from the pod's own.
    let (client, web) = (workload("client", "10.0.0.1"), workload("web", "10.0.0.2"));
    let world = World::new();
    world.learn(&[&client, &web], &[]);
    let bed = Bed::new(&world, None);
    bed.serve(&web);
    let _application = Application::at("10.0.0.2:8080");
    let mut stream = bed.connect(bed.serve(&client), "10.0.0.2:8080");
    talk(&mut stream).unwrap();
    let source = bed.open(Direction::Inbound).source;
    assert_ne!(source.address.ip(), client.addresses[0]);
    assert_eq!(source.workload.as_deref(), Some("client"));
    assert_eq!(source.namespace.as_deref(), Some("shop"));
    assert_eq!(source.identity, Some(client.identity.to_string()));
}
