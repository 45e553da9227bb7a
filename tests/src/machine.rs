//! A machine outside the cluster: a host of the fabric with an agent of its own, and a slice for the processes that it
//! brings into the mesh.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::agent::poll;
use crate::{Cluster, Context, Node, Place, Result};

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// The host and its agent. What runs here is outside the slice.
    pub host: Arc<Node>,
    /// The slice: in the host's network, in a cgroup below the agent's.
    pub slice: Place,
    group: String,
    namespace: String,
}

impl Machine {
    /// A host that may become a machine of a WorkloadGroup.
    ///
    /// # Errors
    /// When it cannot be wired.
    pub fn new(cluster: &Cluster<'_>, name: &str, namespace: &str, group: &str) -> Result<Self> {
        let host = cluster.bed().node(name)?;
        let slice = host.beside("slice", host.pods().child("app")?);
        Ok(Self {
            host,
            slice,
            group: group.to_owned(),
            namespace: namespace.to_owned(),
        })
    }

    /// Its address, IPv4.
    pub fn address(&self) -> IpAddr {
        self.host.addresses().v4.into()
    }

    /// The name of its WorkloadEntry.
    pub fn entry(&self) -> String {
        format!("{}-{}", self.group, self.address())
    }

    /// Starts the agent with a join token and waits until the machine is enrolled.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn join(&self, token: &str) -> Result<()> {
        let file = self.write(token)?;
        self.host
            .start_driven_agent(&["--join", &file.to_string_lossy()])
    }

    /// Starts the agent with a join token and an address that is not the machine's own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn join_as(&self, token: &str, address: IpAddr) -> Result<()> {
        let file = self.write(token)?;
        let address = address.to_string();
        let arguments = ["--join", &file.to_string_lossy(), "--address", &address];
        self.host.launch_driven_agent(&arguments)
    }

    /// Its WorkloadEntry, if it is registered.
    pub fn registered(&self, cluster: &Cluster<'_>) -> Option<Value> {
        let entry = cluster
            .api()
            .get("WorkloadEntry", &self.namespace, &self.entry());
        entry.ok()
    }

    /// Waits until its WorkloadEntry says that its application is, or is not, well.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_health(&self, cluster: &Cluster<'_>, healthy: bool) -> Result<()> {
        let wanted = if healthy { "True" } else { "False" };
        poll(
            &format!("wait until the machine's health is {wanted}"),
            || {
                Ok(self.registered(cluster).is_some_and(|entry| {
                    let conditions = entry["status"]["conditions"].as_array().cloned();
                    let mut conditions = conditions.into_iter().flatten();
                    conditions.any(|it| it["type"] == "Healthy" && it["status"] == wanted)
                }))
            },
        )
    }

    /// Waits until its WorkloadEntry is gone.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_gone(&self, cluster: &Cluster<'_>) -> Result<()> {
        poll("wait until the machine's entry is gone", || {
            Ok(self.registered(cluster).is_none())
        })
    }

    fn write(&self, token: &str) -> Result<PathBuf> {
        let file = self.host.folder().join("join");
        fs::write(&file, token).context(|| "write the join token")?;
        Ok(file)
    }
}

/// A WorkloadGroup whose service account has its name, and whose machines have the label `service`; `probe` asks their
/// applications.
pub fn group(namespace: &str, name: &str, service: &str, probe: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "metadata": { "labels": { "app": name, "service": service } },
            "template": { "serviceAccount": name },
            "probe": probe,
        },
    })
}
