//! The client of a machine: what it proves itself with, and what it says of its application.
use std::sync::Mutex;

use undermesh_identity::{Credentials, NoCredentials, Presented, Proof, Secret};

use super::*;
use crate::{health::Health, wire::HEALTH_TYPE};

/// Credentials that the test changes.
#[derive(Debug)]
struct Held(Mutex<Result<Presented, NoCredentials>>);

impl Credentials for Held {
    fn present(&self) -> Result<Presented, NoCredentials> {
        self.0.lock().unwrap().clone()
    }
}

fn held(world: &World) -> Arc<Held> {
    let roots = std::fs::read_to_string(world.path("roots.pem")).unwrap();
    let token = Secret::new("join-token".to_owned());
    Arc::new(Held(Mutex::new(Ok(Presented {
        proof: Proof::Token(token),
        roots,
    }))))
}

fn options(world: &World, server: &Running, held: &Arc<Held>) -> Options {
    Options {
        roots: Roots::Pem("not these".to_owned()),
        token: Token::Held(Arc::clone(held) as _),
        ..world.options(server.address, Subscription::OnDemand)
    }
}

#[tokio::test]
async fn a_machine_says_how_it_is_when_that_changes_and_at_each_stream() {
    let world = World::new();
    let mut server = world.serve().await;
    let address = server.address;
    let (client, _updates) = start(options(&world, &server, &held(&world)));
    let mut stream = server.conversation().await;
    assert_eq!(stream.header("authorization"), Some("Bearer join-token"));
    stream.first().await;
    client.report_health(Health::Healthy);
    let told = stream.request().await;
    assert_eq!((&*told.type_url, &told.error_detail), (HEALTH_TYPE, &None));
    client.report_health(Health::Healthy);
    let ill = Health::Unhealthy("refused".to_owned());
    client.report_health(ill.clone());
    let told = stream.request().await;
    assert_eq!(Health::of_request(&told), Some(ill.clone()), "said once");

    drop(stream);
    server.stop().await;
    let mut server = world.serve_at(address).await;
    let mut stream = server.conversation().await;
    stream.first().await;
    let told = stream.request().await;
    assert_eq!(Health::of_request(&told), Some(ill));
}

#[tokio::test]
async fn a_machine_without_credentials_says_what_to_do() {
    let world = World::new();
    let server = world.serve().await;
    let held = held(&world);
    *held.0.lock().unwrap() = Err(NoCredentials("make another join token".to_owned()));
    let (client, _updates) = start(options(&world, &server, &held));
    let said = async {
        while client.status().last_error.is_none() {
            tokio::task::yield_now().await;
        }
        client.status().last_error.unwrap()
    };
    assert_eq!(soon("an error", said).await, "make another join token");
}
