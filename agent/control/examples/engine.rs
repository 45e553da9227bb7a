//! Measures the engine: a generated cluster is loaded, then pods come and go.
//!
//! `cargo run --release -p undermesh-control --example engine -- [pods] [services] [namespaces] [nodes] [commits]`
use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use undermesh_control::{
    Change, Engine, Settings, Source,
    resources::{Key, decode_json, kinds::Kind, strings::Strings},
};

/// Pods that change in one commit, as when 100 a second change and commits are 50 ms apart.
const PODS_PER_COMMIT: usize = 5;

struct Shape {
    pods: usize,
    services: usize,
    namespaces: usize,
    nodes: usize,
    commits: usize,
}

impl Shape {
    fn from_arguments() -> Result<Self, Box<dyn Error>> {
        let mut numbers = [50_000, 5_000, 500, 1_000, 1_000];
        for (place, argument) in numbers.iter_mut().zip(std::env::args().skip(1)) {
            *place = argument.parse()?;
        }
        let [pods, services, namespaces, nodes, commits] = numbers.map(|it| it.max(1));
        Ok(Self {
            pods,
            services,
            namespaces,
            nodes,
            commits,
        })
    }

    fn namespace(&self, number: usize) -> String {
        format!("namespace-{}", number % self.namespaces)
    }

    fn node(&self, number: usize) -> Value {
        json!({"metadata": {"name": format!("node-{number}.example"), "labels": {
            "topology.kubernetes.io/region": "region",
            "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
        }}})
    }

    fn service(&self, number: usize) -> Value {
        json!({
            "metadata": {"name": format!("service-{number}"), "namespace": self.namespace(number)},
            "spec": {
                "clusterIP": format!("172.{}.{}.{}", 16 + (number >> 16), (number >> 8) & 255, number & 255),
                "selector": {"app": format!("service-{number}")},
                "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
            },
        })
    }

    fn pod(&self, number: usize, generation: usize, ready: bool) -> Value {
        let service = number % self.services;
        json!({
            "metadata": {
                "name": pod_name(service, number, generation),
                "namespace": self.namespace(service),
                "labels": {
                    "app": format!("service-{service}"),
                    "pod-template-hash": "6d5f7c9b8",
                    "app.kubernetes.io/version": "v1",
                    "app.kubernetes.io/part-of": self.namespace(service),
                    "team": format!("team-{}", service % 50),
                },
                "annotations": {"ambient.istio.io/redirection": "enabled"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": format!("service-{service}-6d5f7c9b8"), "controller": true}],
            },
            "spec": {
                "nodeName": format!("node-{}.example", number % self.nodes),
                "serviceAccountName": format!("service-{service}"),
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}],
            },
            "status": {
                "phase": "Running",
                "podIPs": [{"ip": format!("10.{}.{}.{}", (number >> 16) & 255, (number >> 8) & 255, number & 255)}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        })
    }
}

fn pod_name(service: usize, number: usize, generation: usize) -> String {
    format!("service-{service}-6d5f7c9b8-{number}-{generation}")
}

fn resident_mib() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let text = line.and_then(|line| line.split_whitespace().next());
    Ok(text.unwrap_or("0").parse::<u64>()? / 1024)
}

fn main() -> Result<(), Box<dyn Error>> {
    let shape = Shape::from_arguments()?;
    let settings = Settings {
        source: Source::Kubernetes,
        ..Settings::default()
    };
    let (mut engine, strings) = (Engine::new(settings), Strings::default());
    let applied = |kind, json: &Value| Change::Applied(decode_json(kind, json, &strings));

    let before = resident_mib()?;
    let begin = Instant::now();
    for number in 0..shape.nodes {
        engine.apply(applied(Kind::Node, &shape.node(number)));
    }
    for number in 0..shape.services {
        engine.apply(applied(Kind::Service, &shape.service(number)));
    }
    for number in 0..shape.pods {
        engine.apply(applied(Kind::Pod, &shape.pod(number, 0, true)));
    }
    let read = begin.elapsed();
    let begin = Instant::now();
    let first = engine.commit().delta;
    println!(
        "{} pods, {} services, {} namespaces: read in {read:?}, first commit {:?}, {} parts, {} MiB more",
        shape.pods,
        shape.services,
        shape.namespaces,
        begin.elapsed(),
        first.workloads.len() + first.services.len(),
        resident_mib()?.saturating_sub(before),
    );
    drop(first);

    let mut times = Vec::new();
    let mut changed = 0;
    for commit in 0..shape.commits {
        let mut spent = Duration::ZERO;
        for place in 0..PODS_PER_COMMIT {
            // Far apart, so that each is in another namespace.
            let number = (commit * PODS_PER_COMMIT + place) * 7919 % shape.pods;
            let service = number % shape.services;
            let old = Key::new(
                Kind::Pod,
                shape.namespace(service).into(),
                pod_name(service, number, 0).into(),
            );
            let json = shape.pod(number, 1, place % 2 == 0);
            let begin = Instant::now();
            engine.apply(Change::Removed(old));
            engine.apply(applied(Kind::Pod, &json));
            spent += begin.elapsed();
        }
        let begin = Instant::now();
        let delta = engine.commit().delta;
        times.push(spent + begin.elapsed());
        changed += delta.workloads.len() + delta.removed_workloads.len() + delta.services.len();
    }
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{} commits of {PODS_PER_COMMIT} replaced pods: p50 {:?}, p99 {:?}, longest {:?}, {changed} parts changed, {} MiB",
        times.len(),
        at(50),
        at(99),
        at(100),
        resident_mib()?,
    );
    Ok(())
}
