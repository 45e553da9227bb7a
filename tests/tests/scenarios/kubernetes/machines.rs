//! Machines outside the cluster: they join by a token, serve and call under their identity, and leave.
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use undermesh_ca::client::{ClientOptions, TokenOwner, Trust};
use undermesh_machine::{JoinCredentials, JoinToken};
use undermesh_tests::agent::poll;
use undermesh_tests::cluster::{Cluster, ClusterPod, namespace};
use undermesh_tests::machine::{Machine, group};
use undermesh_tests::process::Output;
use undermesh_tests::{Context, Family, Node, Place, PodSpec, Result, Testbed, apps};

use super::certificates::request;
use super::{MEMBER, PORT, SHOP, address, server};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kubernetes_a_machine_joins_serves_and_leaves", |bed| {
        joins_serves_and_leaves(server::own(bed)?)
    })
    .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_by_kube_apiserver_a_machine_joins_serves_and_leaves",
        |bed| joins_serves_and_leaves(server::real_with(bed, definitions()?)?),
    )
    .needs(&["nginx", "curl", "openssl"])
    .given(undermesh_tests::apiserver::assets),
    Scenario::new(
        "kubernetes_a_machine_lives_on_its_certificate_alone",
        outlives_the_controller,
    )
    .needs(&["nginx", "curl"]),
    Scenario::new("kubernetes_a_machine_without_its_agent_is_refused", crashes)
        .needs(&["nginx", "curl"]),
    Scenario::new(
        "kubernetes_a_stolen_join_token_opens_nothing_else",
        stolen_token,
    ),
];

/// The group of the machines, and the service account that they run as.
const GROUP: &str = "stock";
/// Lives of certificates that pass within a scenario.
const SHORT: [&str; 2] = ["--certificate-lifetime", "5s"];
const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/stock";

/// The definitions that the chart installs, as far as they are used here.
fn definitions() -> Result<Vec<Value>> {
    let texts = [
        include_str!("../../../../deploy/chart/undermesh/crds/peerauthentications.yaml"),
        include_str!("../../../../deploy/chart/undermesh/crds/workloadentries.yaml"),
        include_str!("../../../../deploy/chart/undermesh/crds/workloadgroups.yaml"),
    ];
    let read = |text| serde_norway::from_str(text).context(|| "read a definition of the chart");
    texts.into_iter().map(read).collect()
}

/// A cluster with one node and a client on it, a machine, and a service over the machines.
struct Yard<'a> {
    cluster: Cluster<'a>,
    node: Arc<Node>,
    client: ClusterPod,
    machine: Machine,
}

impl<'a> Yard<'a> {
    fn new(cluster: Cluster<'a>) -> Result<Self> {
        Self::under(cluster, &[])
    }

    /// A yard whose controller has more arguments.
    fn under(cluster: Cluster<'a>, controller: &[&str]) -> Result<Self> {
        cluster.start_controller(controller)?;
        let api = cluster.api();
        api.apply(&namespace(SHOP, &[MEMBER]))?;
        cluster.service_account(SHOP, GROUP)?;
        let probe = json!({
            "periodSeconds": 1,
            "failureThreshold": 1,
            "tcpSocket": { "port": apps::NGINX_PORT },
        });
        api.apply(&group(SHOP, GROUP, "web", &probe))?;
        cluster.service(SHOP, "web", address(), (PORT, apps::NGINX_PORT))?;
        let node = cluster.node("n1")?;
        cluster.start_agent(&node, &[])?;
        let client = cluster.pod(&node, PodSpec::new(SHOP, "client"))?;
        cluster.wait_enrolled(&client)?;
        let machine = Machine::new(&cluster, "vm", SHOP, GROUP)?;
        Ok(Self {
            cluster,
            node,
            client,
            machine,
        })
    }

    /// The machine joins with a fresh token.
    fn join(&self) -> Result<()> {
        self.machine.join(&self.cluster.join_token(SHOP, GROUP)?)
    }

    /// The client fetches the machine's name through the service.
    fn fetch(&self) -> Result<Output> {
        self.client.pod.curl(address().v4.into(), PORT, "/name")
    }

    fn wait_served(&self) -> Result<()> {
        poll("wait until the service leads to the machine", || {
            Ok(self.fetch()?.status.success())
        })
    }
}

fn joins_serves_and_leaves(cluster: Cluster<'_>) -> Result<()> {
    let yard = Yard::new(cluster)?;
    yard.join()?;
    let machine = &yard.machine;
    let listed = machine.host.json(&["list"])?;
    assert_eq!(listed[0]["name"], machine.entry());
    assert_eq!(listed[0]["identity"], IDENTITY);

    // Nothing listens yet, and so nobody is sent there.
    machine.wait_health(&yard.cluster, false)?;
    assert!(!yard.fetch()?.status.success());

    serves(&yard)?;
    calls(&yard)?;
    yard.machine.host.stop_agent()?;
    yard.machine.wait_gone(&yard.cluster)?;
    leaves(&yard)
}

/// What was in the mesh talks as it did before: in clear, and to whoever lets it in.
fn leaves(yard: &Yard<'_>) -> Result<()> {
    let Yard {
        cluster, machine, ..
    } = yard;
    let _nginx = apps::nginx(&yard.client.pod)?;
    let ip = yard.client.pod.ip(Family::V4);
    let call = || machine.slice.curl(ip, apps::NGINX_PORT, "/peer");
    assert!(!call()?.status.success());
    cluster
        .api()
        .delete("PeerAuthentication", SHOP, "default")?;
    poll("wait until a plain client is let in", || {
        Ok(call()?.status.success())
    })?;
    assert_eq!(call()?.success()?, machine.address().to_string());
    Ok(())
}

/// A pod reaches the machine's application by the service and under mutual TLS, a plain client does not, and one that
/// is ill gets no traffic.
fn serves(yard: &Yard<'_>) -> Result<()> {
    let Yard {
        cluster, machine, ..
    } = yard;
    let mut nginx = apps::nginx_named(&machine.slice, "stock")?;
    machine.wait_health(cluster, true)?;
    yard.wait_served()?;
    let mark = machine.host.log_mark();
    assert_eq!(yard.fetch()?.success()?, "stock");
    let access = machine.host.wait_access(mark, |access| access.inbound())?;
    assert_eq!(
        access.text("src.identity"),
        yard.client.pod.spec().identity()
    );
    assert_eq!(access.text("dst.identity"), IDENTITY);

    let outside = cluster.bed().outside("outside")?;
    let plain = || {
        outside
            .place
            .curl(machine.address(), apps::NGINX_PORT, "/name")
    };
    assert_eq!(plain()?.success()?, "stock");
    cluster.api().apply(&json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "default", "namespace": SHOP },
        "spec": { "mtls": { "mode": "STRICT" } },
    }))?;
    poll("wait until a plain client is refused", || {
        Ok(!plain()?.status.success())
    })?;
    assert_eq!(yard.fetch()?.success()?, "stock");

    nginx.process.signal(Signal::SIGTERM)?;
    nginx.process.wait(Duration::from_secs(30))?;
    machine.wait_health(cluster, false)?;
    poll("wait until the service has nobody left", || {
        let log = yard.node.log_mark();
        let refused = !yard.fetch()?.status.success();
        let access = yard.node.wait_access(log, |access| !access.inbound())?;
        // It is not even tried.
        Ok(refused && access.text("dst.hbone_addr").is_empty())
    })?;
    let _again = apps::nginx_named(&machine.slice, "stock")?;
    machine.wait_health(cluster, true)?;
    yard.wait_served()
}

/// A process of the slice calls a pod under the machine's identity; one beside the slice is nobody.
fn calls(yard: &Yard<'_>) -> Result<()> {
    let Yard {
        cluster, machine, ..
    } = yard;
    let pod = cluster.pod(&yard.node, PodSpec::new(SHOP, "server").behind("cart"))?;
    let virtual_address = undermesh_tests::shop::service_addresses(41);
    cluster.service(SHOP, "cart", virtual_address, (PORT, apps::NGINX_PORT))?;
    let _nginx = apps::nginx(&pod.pod)?;
    cluster.wait_enrolled(&pod)?;
    let call = || machine.slice.curl(virtual_address.v4.into(), PORT, "/name");
    poll("wait until the machine reaches the service", || {
        Ok(call()?.status.success())
    })?;
    let mark = yard.node.log_mark();
    assert_eq!(call()?.success()?, "server");
    let access = yard.node.wait_access(mark, |access| access.inbound())?;
    assert_eq!(access.text("src.identity"), IDENTITY);
    // STRICT is in force: beside the slice there is no identity to show.
    let beside = machine
        .host
        .curl(pod.pod.ip(Family::V4), apps::NGINX_PORT, "/name")?;
    assert!(!beside.status.success());
    Ok(())
}

/// The join token is used once. From then on the machine proves itself by its certificate: it renews by it, and is
/// registered again by it when the controller comes back and knows nothing of it.
fn outlives_the_controller(bed: &Testbed) -> Result<()> {
    let yard = Yard::under(server::own(bed)?, &SHORT)?;
    yard.join()?;
    let (cluster, machine) = (&yard.cluster, &yard.machine);
    let _nginx = apps::nginx_named(&machine.slice, "stock")?;
    machine.wait_health(cluster, true)?;
    yard.wait_served()?;
    wait_renewed(machine)?;

    cluster.kill_controller()?;
    assert_eq!(yard.fetch()?.success()?, "stock");
    // Whatever was registered is lost, as after a long absence.
    cluster
        .api()
        .delete("WorkloadEntry", SHOP, &machine.entry())?;
    cluster.start_controller(&SHORT)?;
    machine.wait_health(cluster, true)?;
    yard.wait_served()?;
    wait_renewed(machine)
}

/// While a crashed agent is away the slice is refused, and nobody else; the same join token brings it back.
fn crashes(bed: &Testbed) -> Result<()> {
    let yard = Yard::new(server::own(bed)?)?;
    let (cluster, machine) = (&yard.cluster, &yard.machine);
    let token = cluster.join_token(SHOP, GROUP)?;
    machine.join(&token)?;
    let _nginx = apps::nginx_named(&machine.slice, "stock")?;
    machine.wait_health(cluster, true)?;
    yard.wait_served()?;

    machine.host.kill_agent()?;
    let outside = cluster.bed().outside("outside")?;
    let (own, other) = (machine.address(), outside.addresses.v4.into());
    let page = apps::nginx_named(&outside.place, "outside")?;
    let plain = |place: &Place, address| place.curl(address, page.port, "/name");
    assert!(!plain(&machine.slice, other)?.status.success());
    assert!(!plain(&outside.place, own)?.status.success());
    assert_eq!(plain(&machine.host, other)?.success()?, "outside");

    machine.join(&token)?;
    assert_eq!(plain(&machine.slice, other)?.success()?, "outside");
    yard.wait_served()
}

fn wait_renewed(machine: &Machine) -> Result<()> {
    let serial = || -> Result<Value> {
        let certificates = machine.host.json(&["certificates"])?;
        Ok(certificates[0]["serial"].clone())
    };
    let before = serial()?;
    poll("wait until the machine's certificate is renewed", || {
        Ok(serial()? != before)
    })
}

/// A join token is good for a machine of its group on an address that nobody has, and for nothing else.
fn stolen_token(bed: &Testbed) -> Result<()> {
    let yard = Yard::new(server::own(bed)?)?;
    let (cluster, machine) = (&yard.cluster, &yard.machine);
    let text = cluster.join_token(SHOP, GROUP)?;
    let pod = yard.client.pod.ip(Family::V4);
    let node = yard.node.addresses().v4.into();
    for (address, holder) in [(pod, "Pod/shop/client"), (node, "node n1")] {
        machine.join_as(&text, address)?;
        let refused = format!("{address} is the address of");
        cluster.controller().wait_line(&[&refused, holder])?;
        machine.host.kill_agent()?;
        let entry = format!("{GROUP}-{address}");
        assert!(cluster.api().get("WorkloadEntry", SHOP, &entry).is_err());
    }

    // The token inside is its own account's, and brings no other's certificate.
    let token: JoinToken = text.parse().context(|| "read the join token")?;
    let ask = |owner, whose: &str| {
        let credentials = JoinCredentials::new(token.token.clone(), token.roots.clone());
        let options = ClientOptions {
            address: token.controller.clone(),
            server_name: Some(token.controller_name.clone()),
            trust: Trust::Held(Arc::new(credentials)),
            token_owner: owner,
            cluster: token.cluster.clone(),
            cert_signer: None,
            headers: Vec::new(),
        };
        machine.host.run(|| request(options, whose))?
    };
    ask(TokenOwner::Workload, IDENTITY)?.unwrap();
    let other = yard.client.pod.spec().identity();
    let refused = ask(TokenOwner::Node, &other)?.unwrap_err();
    assert!(refused.to_string().contains("not entitled"), "{refused}");
    cluster
        .controller()
        .wait_line(&["not_node_agent", &other])?;
    Ok(())
}
