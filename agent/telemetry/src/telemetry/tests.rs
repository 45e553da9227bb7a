use std::time::Duration;

use undermesh_model::{
    Identity, Locality, Tunnel, Workload,
    workload::{DEFAULT_CAPACITY, Health, NetworkMode, WorkloadKind},
};

use super::*;
use crate::{
    connection::{Peer, Security},
    format::Format,
    output::{OutputThread, tests::Captured},
    series::SERIES_IDLE,
};

fn workload(name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: format!("Kubernetes//Pod/shop/{name}-0").into(),
        name: format!("{name}-0").into(),
        namespace: "shop".into(),
        addresses: vec!["10.8.2.9".parse().unwrap()],
        network: "".into(),
        tunnel: Tunnel::Hbone,
        identity: identity(name),
        node: "n1".into(),
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
        workload_name: name.into(),
        workload_kind: WorkloadKind::Deployment,
        locality: Locality {
            region: "r1".into(),
            zone: "".into(),
            subzone: "".into(),
        },
        health: Health::Healthy,
        cluster: "Kubernetes".into(),
        policies: Vec::new(),
        hostname: Arc::from(""),
        network_mode: NetworkMode::Standard,
        capacity: DEFAULT_CAPACITY,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        native_tunnel: false,
    })
}

fn identity(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

fn peer(address: &str, name: &str) -> Peer {
    Peer {
        address: address.parse().unwrap(),
        workload: Some(workload(name)),
        identity: Some(identity(name)),
    }
}

fn opening(direction: Direction) -> Opening {
    Opening {
        direction,
        source: peer("10.8.1.23:41822", "cart"),
        destination: peer("10.8.2.9:15008", "redis"),
        hbone_authority: Some("10.8.2.9:6379".into()),
        service: None,
        security: Security::MutualTls,
        id: 1,
    }
}

fn telemetry() -> Telemetry {
    Telemetry::new(Output::discard(), "1.2.3").unwrap()
}

fn logged() -> (Telemetry, Captured, OutputThread) {
    let sink = Captured::default();
    let (output, thread) = Output::start(Format::Text, sink.clone()).unwrap();
    (Telemetry::new(output, "1.2.3").unwrap(), sink, thread)
}

/// Runs `action` with every level of the log enabled.
fn at_all_levels(action: impl FnOnce()) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_writer(std::io::sink);
    tracing::subscriber::with_default(subscriber.finish(), action);
}

/// The value of the only sample of `name` that has all of `labels`.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<u64> {
    let fits = |line: &&str| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    };
    let found: Vec<&str> = text.lines().filter(fits).collect();
    assert!(found.len() <= 1, "{found:?}");
    found
        .first()
        .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

#[test]
fn a_series_has_istios_labels_in_istios_order() {
    let telemetry = telemetry();
    telemetry
        .opened(opening(Direction::Inbound))
        .finish(Outcome::Complete);
    let text = telemetry.scrape().unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("istio_tcp_connections_closed_total{"));
    assert_eq!(
        line.unwrap(),
        "istio_tcp_connections_closed_total{reporter=\"destination\",\
         source_workload=\"cart\",source_canonical_service=\"cart\",source_canonical_revision=\"v1\",\
         source_workload_namespace=\"shop\",source_principal=\"spiffe://cluster.local/ns/shop/sa/cart\",\
         source_app=\"cart\",source_version=\"v1\",source_cluster=\"Kubernetes\",\
         destination_service=\"unknown\",destination_service_namespace=\"unknown\",\
         destination_service_name=\"unknown\",\
         destination_workload=\"redis\",destination_canonical_service=\"redis\",\
         destination_canonical_revision=\"v1\",destination_workload_namespace=\"shop\",\
         destination_principal=\"spiffe://cluster.local/ns/shop/sa/redis\",\
         destination_app=\"redis\",destination_version=\"v1\",destination_cluster=\"Kubernetes\",\
         request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",\
         source_region=\"r1\",destination_region=\"r1\"} 1"
    );
}

#[test]
fn both_reporters_call_received_what_the_client_sent() {
    let telemetry = telemetry();
    for direction in [Direction::Outbound, Direction::Inbound] {
        let connection = telemetry.opened(opening(direction));
        connection.add_sent(100);
        connection.add_received(7);
        connection.finish(Outcome::Complete);
    }
    let text = telemetry.scrape().unwrap();
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        assert_eq!(
            value(&text, "istio_tcp_received_bytes_total", &[reporter]),
            Some(100)
        );
        assert_eq!(
            value(&text, "istio_tcp_sent_bytes_total", &[reporter]),
            Some(7)
        );
    }
}

#[test]
fn bytes_of_an_open_connection_are_seen_and_none_is_lost_or_counted_twice() {
    let telemetry = telemetry();
    let connection = telemetry.opened(opening(Direction::Outbound));
    let received = |telemetry: &Telemetry| {
        let text = telemetry.scrape().unwrap();
        value(&text, "istio_tcp_received_bytes_total", &[]).unwrap()
    };
    connection.add_sent(10);
    assert_eq!(received(&telemetry), 10);
    assert_eq!(received(&telemetry), 10);
    connection.counters().add_sent(5);
    connection.finish(Outcome::Complete);
    assert_eq!(received(&telemetry), 15);
}

#[test]
fn bytes_are_counted_once_while_scrapes_and_the_copy_loop_race() {
    let telemetry = telemetry();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let connection = telemetry.opened(opening(Direction::Outbound));
                    (0..10).for_each(|_| connection.add_sent(1));
                    connection.finish(Outcome::Complete);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| (0..200).for_each(|_| telemetry.account()));
        }
    });
    let text = telemetry.scrape().unwrap();
    assert_eq!(
        value(&text, "istio_tcp_received_bytes_total", &[]),
        Some(2 * 200 * 10)
    );
    assert_eq!(
        value(&text, "istio_tcp_connections_closed_total", &[]),
        Some(400)
    );
}

#[test]
fn a_failure_is_counted_under_its_flag() {
    let telemetry = telemetry();
    let failed = Outcome::Failed {
        flag: ResponseFlag::Deny,
        reason: "no policy allows it".into(),
    };
    telemetry.opened(opening(Direction::Inbound)).finish(failed);
    telemetry.refused(Early {
        direction: Direction::Inbound,
        source: "10.8.1.23:1".parse().unwrap(),
        destination: "10.8.2.9:15008".parse().unwrap(),
        reason: "handshake".to_owned(),
        flag: ResponseFlag::TlsFailure,
    });
    let text = telemetry.scrape().unwrap();
    let failed = "istio_tcp_connections_failed_total";
    assert_eq!(
        value(&text, failed, &["DENY", "source_workload=\"cart\""]),
        Some(1)
    );
    assert_eq!(
        value(
            &text,
            failed,
            &["TLS_FAILURE", "source_workload=\"unknown\""]
        ),
        Some(1)
    );
    assert_eq!(
        value(&text, "istio_tcp_connections_closed_total", &["DENY"]),
        Some(1)
    );
    assert_eq!(
        value(
            &text,
            "istio_tcp_connections_opened_total",
            &["cart", "\"-\""]
        ),
        Some(1)
    );
}

#[test]
fn the_table_lists_what_is_open() {
    let telemetry = telemetry();
    let connection = telemetry.opened(opening(Direction::Inbound));
    connection.add_sent(3);
    connection.add_received(512);
    let [view] = &telemetry.connections()[..] else {
        panic!("one connection is open")
    };
    assert_eq!((view.bytes_sent, view.bytes_received), (512, 3));
    assert_eq!(
        view.destination.hbone_address.as_deref(),
        Some("10.8.2.9:6379")
    );
    let text = telemetry.scrape().unwrap();
    assert_eq!(
        value(&text, "istio_tcp_sockets_open", &["\"destination\""]),
        Some(1)
    );
    connection.finish(Outcome::Complete);
    assert_eq!(telemetry.open_connections(), 0);
    let text = telemetry.scrape().unwrap();
    assert_eq!(
        value(&text, "istio_tcp_sockets_open", &["\"destination\""]),
        Some(0)
    );
}

#[test]
fn a_finished_connection_is_one_line_in_ztunnels_form() {
    let (telemetry, sink, thread) = logged();
    at_all_levels(|| {
        let connection = telemetry.opened(opening(Direction::Inbound));
        connection.add_sent(97);
        connection.add_received(512);
        connection.finish(Outcome::Complete);
    });
    drop(thread);
    let text = sink.text();
    let [opened, complete] = text.lines().collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    assert!(
        opened.contains("\tdebug\taccess\tconnection opened\tsrc.addr="),
        "{opened}"
    );
    let (_, complete) = complete.split_once('\t').unwrap();
    let (complete, duration) = complete.split_once(" duration=").unwrap();
    assert_eq!(
        complete,
        "info\taccess\tconnection complete\tsrc.addr=10.8.1.23:41822 src.workload=\"cart-0\" \
         src.namespace=\"shop\" src.identity=\"spiffe://cluster.local/ns/shop/sa/cart\" \
         src.cluster=\"Kubernetes\" dst.addr=10.8.2.9:15008 dst.hbone_addr=10.8.2.9:6379 \
         dst.workload=\"redis-0\" dst.namespace=\"shop\" \
         dst.identity=\"spiffe://cluster.local/ns/shop/sa/redis\" dst.cluster=\"Kubernetes\" \
         direction=\"inbound\" bytes_sent=512 bytes_recv=97"
    );
    assert!(
        duration.starts_with('"') && duration.ends_with("ms\""),
        "{duration}"
    );
}

#[test]
fn a_dropped_connection_is_closed_and_logged_as_an_error() {
    let (telemetry, sink, thread) = logged();
    at_all_levels(|| drop(telemetry.opened(opening(Direction::Outbound))));
    drop(thread);
    assert_eq!(telemetry.open_connections(), 0);
    let text = telemetry.scrape().unwrap();
    assert_eq!(
        value(&text, "istio_tcp_connections_closed_total", &[]),
        Some(1)
    );
    let line = sink.text().lines().last().unwrap().to_owned();
    assert!(
        line.contains("\terror\taccess\tconnection complete\t"),
        "{line}"
    );
    assert!(
        line.contains(" error=\"the connection was aborted"),
        "{line}"
    );
}

#[test]
fn a_series_beyond_the_bound_is_counted_as_other() {
    let now = Instant::now();
    let overflow = prometheus::IntCounter::new("overflow", "For the test.").unwrap();
    let store = SeriesStore::new(1, overflow.clone(), now);
    store
        .resolve(&opening(Direction::Inbound), now)
        .add_opened();
    let second = store.resolve(&opening(Direction::Outbound), now);
    second.add_opened();
    let mut text = String::new();
    store.write(&mut text);
    assert_eq!(overflow.get(), 1);
    assert_eq!(store.len(), 1);
    let opened = "istio_tcp_connections_opened_total";
    assert_eq!(
        value(
            &text,
            opened,
            &["source_workload=\"other\"", "reporter=\"other\""]
        ),
        Some(1)
    );
    assert_eq!(value(&text, opened, &["source_workload=\"cart\""]), Some(1));
}

#[test]
fn a_series_stays_while_a_connection_is_open_and_goes_when_long_unused() {
    let now = Instant::now();
    let overflow = prometheus::IntCounter::new("overflow", "For the test.").unwrap();
    let store = SeriesStore::new(10, overflow, now);
    let series = store.resolve(&opening(Direction::Inbound), now);
    let late = now + SERIES_IDLE + Duration::from_secs(120);
    store.evict(late);
    assert_eq!(store.len(), 1);
    store.touch(&series, late);
    drop(series);
    store.evict(late);
    assert_eq!(store.len(), 1);
    store.evict(late + SERIES_IDLE + Duration::from_secs(1));
    assert_eq!(store.len(), 0);
}

#[test]
fn a_replaced_workload_of_the_same_name_keeps_its_series() {
    let now = Instant::now();
    let overflow = prometheus::IntCounter::new("overflow", "For the test.").unwrap();
    let store = SeriesStore::new(10, overflow, now);
    let first = store.resolve(&opening(Direction::Inbound), now);
    let second = store.resolve(&opening(Direction::Inbound), now);
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(store.len(), 1);
}
