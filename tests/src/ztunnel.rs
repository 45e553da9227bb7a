//! Istio's ztunnel as the agent of a node, with what istio-cni does for it: capture by iptables, and the pods'
//! network namespaces over ZDS (`istio.workload.zds`).

use std::env;
use std::fs;
use std::io::{IoSlice, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind,
    listen, recv, sendmsg, socket,
};
use serde_json::json;

use crate::cluster::{Cluster, ClusterPod, SYSTEM};
use crate::process::Running;
use crate::{Context, Error, Node, Result};

/// Names ztunnel's binary.
pub const VARIABLE: &str = "ZTUNNEL";
/// The service account of ztunnel.
const ACCOUNT: &str = "ztunnel";
/// A name in the controller's certificate, by which ztunnel looks for istiod.
const CONTROLLER: &str = "istiod.istio-system.svc";
/// Longest packet of ZDS.
const MAX_PACKET: usize = 1024;
/// How long ztunnel may take for a line that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The rules of Istio ambient inside a pod (1337 marks ztunnel's own packets).
const RULES: &str = "*mangle
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
-A OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
";

/// The binary, or why there is none.
///
/// # Errors
/// As the reason to skip a test.
pub fn binary() -> std::result::Result<PathBuf, String> {
    let binary = env::var_os(VARIABLE)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{VARIABLE} names no binary of Istio's ztunnel"))?;
    match binary.is_file() {
        true => Ok(binary),
        false => Err(format!("{} ({VARIABLE}) is no file", binary.display())),
    }
}

/// A running ztunnel.
#[derive(Debug)]
pub struct Ztunnel {
    process: Running,
}

impl Ztunnel {
    /// Starts ztunnel on `node`, driven by the controller of `cluster`, and gives it `pods`.
    ///
    /// # Errors
    /// When a step fails, or ztunnel does not take a pod.
    pub fn start(cluster: &Cluster<'_>, node: &Node, pods: &[&ClusterPod]) -> Result<Self> {
        let binary = binary().map_err(|reason| Error::step("find ztunnel", reason))?;
        let environment = environment(cluster, node)?;
        let zds = node.folder().join("zds");
        let listener = zds_listener(&zds)?;
        let mut command = node.command(binary, ["proxy", "ztunnel"])?;
        command.envs(environment).env("INPOD_UDS", &zds);
        let lines = node.journal().open("ztunnel");
        let process = Running::start("ztunnel", &mut command, lines)?;
        for pod in pods {
            redirect(pod)?;
        }
        serve_zds(&listener, pods)?;
        Ok(Self { process })
    }

    /// Waits for a line of its log.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait_line(&self, mut wanted: impl FnMut(&str) -> bool) -> Result<()> {
        let lines = self.process.lines();
        lines
            .wait_for(0, PATIENCE, |line| wanted(line).then_some(()))
            .context(|| "wait for a line of ztunnel")
    }
}

/// Makes ztunnel's own pod and token, and says where everything is.
fn environment(cluster: &Cluster<'_>, node: &Node) -> Result<Vec<(&'static str, String)>> {
    let api = cluster.api();
    let name = format!("ztunnel-{}", node.name());
    api.apply(&json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "name": ACCOUNT, "namespace": SYSTEM },
    }))?;
    let pod = api.apply(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": SYSTEM, "labels": { "app": "ztunnel" } },
        "spec": {
            "nodeName": node.name(),
            "serviceAccountName": ACCOUNT,
            "containers": [{ "name": "ztunnel", "image": "ztunnel" }],
        },
    }))?;
    let (token, roots) = (node.folder().join("token"), node.folder().join("roots.pem"));
    fs::write(&token, api.token(SYSTEM, ACCOUNT, &pod, 3600)?)
        .context(|| "write ztunnel's token")?;
    let bundle = api.get("ConfigMap", SYSTEM, "istio-ca-root-cert")?;
    let text = bundle["data"]["root-cert.pem"].as_str().unwrap_or_default();
    fs::write(&roots, text).context(|| "write the roots of ztunnel")?;
    let (roots, control) = (roots.display().to_string(), cluster.discovery_url());
    Ok(vec![
        ("RUST_LOG", "info".to_owned()),
        ("PROXY_MODE", "shared".to_owned()),
        ("XDS_ADDRESS", control.clone()),
        ("CA_ADDRESS", control),
        ("ALT_XDS_HOSTNAME", CONTROLLER.to_owned()),
        ("ALT_CA_HOSTNAME", CONTROLLER.to_owned()),
        ("XDS_ROOT_CA", roots.clone()),
        ("CA_ROOT_CA", roots),
        ("AUTH_TOKEN", token.display().to_string()),
        ("NODE_NAME", node.name().to_owned()),
        ("POD_NAME", name),
        ("POD_NAMESPACE", SYSTEM.to_owned()),
        ("INSTANCE_IP", node.addresses().v4.to_string()),
        ("CLUSTER_ID", "Kubernetes".to_owned()),
        ("NETWORK", String::new()),
        ("IPV6_ENABLED", "false".to_owned()),
        ("DNS_CAPTURE", "false".to_owned()),
    ])
}

/// Leads a pod's connections to ztunnel, as istio-cni does.
fn redirect(pod: &ClusterPod) -> Result<()> {
    let place = &pod.pod;
    let mut command = place.command("iptables-restore", ["--wait", "10", "--noflush"])?;
    let mut restore = command
        .stdin(Stdio::piped())
        .spawn()
        .context(|| "start iptables-restore")?;
    let mut input = restore.stdin.take().context(|| "open iptables-restore")?;
    input
        .write_all(RULES.as_bytes())
        .context(|| "write the rules")?;
    drop(input);
    let status = restore.wait().context(|| "wait for iptables-restore")?;
    if !status.success() {
        return Err(Error::step("redirect a pod to ztunnel", status));
    }
    place
        .netns()
        .ip("route add local 0.0.0.0/0 dev lo table 100\nrule add fwmark 0x111/0xfff pref 32764 lookup 100\n")
}

fn zds_listener(path: &std::path::Path) -> Result<OwnedFd> {
    let listener = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context(|| "make the ZDS socket")?;
    let address = UnixAddr::new(path).context(|| "name the ZDS socket")?;
    bind(listener.as_raw_fd(), &address).context(|| "bind the ZDS socket")?;
    let backlog = Backlog::new(4).context(|| "set the backlog of ZDS")?;
    listen(&listener, backlog).context(|| "listen for ZDS")?;
    Ok(listener)
}

/// Plays istio-cni's side: every pod with its namespace, the end of the snapshot, then silence.
fn serve_zds(listener: &OwnedFd, pods: &[&ClusterPod]) -> Result<()> {
    let connection = accept(listener.as_raw_fd()).context(|| "accept ztunnel")?;
    receive(connection)?;
    for pod in pods {
        let netns = pod.pod.netns().open()?;
        send(connection, &add_message(pod), Some(netns.as_raw_fd()))?;
        receive(connection)?;
    }
    // WorkloadRequest.snapshot_sent (field 3), an empty message.
    send(connection, &field(3, b""), None)?;
    receive(connection)?;
    // ztunnel takes the end of the connection for the end of the agent; a thread of the test keeps it.
    thread::spawn(move || receive(connection));
    Ok(())
}

fn send(connection: i32, packet: &[u8], netns: Option<i32>) -> Result<()> {
    let netns: Vec<i32> = netns.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&netns)];
    let rights = if netns.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(
        connection,
        &[IoSlice::new(packet)],
        rights,
        MsgFlags::empty(),
        None,
    )
    .map(drop)
    .context(|| "send to ztunnel")
}

/// Takes one packet; an acknowledgement with an error text is a failure.
fn receive(connection: i32) -> Result<Vec<u8>> {
    let mut packet = vec![0; MAX_PACKET];
    let size = recv(connection, &mut packet, MsgFlags::empty()).context(|| "hear ztunnel")?;
    packet.truncate(size);
    // WorkloadResponse.ack (field 1) is empty when all is well; the hello is two bytes.
    if packet.len() > 2 {
        let words = String::from_utf8_lossy(&packet).into_owned();
        return Err(Error::step("give ztunnel a pod", words));
    }
    Ok(packet)
}

/// `WorkloadRequest { add: AddWorkload { uid, workload_info } }`.
fn add_message(pod: &ClusterPod) -> Vec<u8> {
    let spec = pod.pod.spec();
    let names = [
        field(1, spec.name.as_bytes()),
        field(2, spec.namespace.as_bytes()),
        field(3, spec.service_account.as_bytes()),
    ];
    let add = [field(1, pod.uid.as_bytes()), field(2, &names.concat())];
    field(1, &add.concat())
}

/// A length-delimited field of Protocol Buffers; bodies here are shorter than 16 KiB.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    let (low, high) = ((body.len() & 0x7f) as u8, (body.len() >> 7) as u8);
    let mut bytes = vec![number << 3 | 2];
    match high {
        0 => bytes.push(low),
        _ => bytes.extend([low | 0x80, high]),
    }
    bytes.extend_from_slice(body);
    bytes
}
