//! The folder of manifests that the agents watch, and the YAML of the things a testbed has.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::pod::Addresses;
use crate::{Context, Node, Pod, Result};

/// A folder of manifests.
#[derive(Debug)]
pub struct Manifests {
    folder: PathBuf,
    staging: PathBuf,
}

impl Manifests {
    /// Makes an empty folder `config` below `parent`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(parent: &Path) -> Result<Self> {
        let manifests = Self {
            folder: parent.join("config"),
            staging: parent.join("config-staging"),
        };
        for folder in [&manifests.folder, &manifests.staging] {
            fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
        }
        Ok(manifests)
    }

    /// Where the manifests are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `<name>.yaml`, new or in place of the old one, in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, yaml: &str) -> Result<()> {
        let staged = self.staging.join(name);
        fs::write(&staged, yaml)
            .and_then(|()| fs::rename(&staged, self.path(name)))
            .context(|| format!("write the manifest {name}"))
    }

    /// Removes `<name>.yaml`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.path(name)).context(|| format!("remove the manifest {name}"))
    }

    /// The path of `<name>.yaml`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.yaml"))
    }
}

/// A port of a service and the port of its pods behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServicePort {
    /// The port that clients ask for.
    pub port: u16,
    /// The port that the pods listen on.
    pub target: u16,
}

/// A namespace whose pods are in the mesh.
pub fn namespace(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata:
  name: {name}
  labels:
    istio.io/dataplane-mode: ambient
---
"
    )
}

/// A node in a zone of its own.
pub fn node(node: &Node) -> String {
    let name = node.name();
    let Addresses { v4, v6 } = node.addresses();
    format!(
        "apiVersion: v1
kind: Node
metadata:
  name: {name}
  labels:
    topology.kubernetes.io/region: region-1
    topology.kubernetes.io/zone: zone-{name}
status:
  addresses:
  - type: InternalIP
    address: {v4}
  - type: InternalIP
    address: '{v6}'
---
"
    )
}

/// A running pod with its two addresses.
pub fn pod(pod: &Pod) -> String {
    let spec = pod.spec();
    let Addresses { v4, v6 } = pod.addresses();
    let service = spec
        .service
        .as_ref()
        .map(|service| format!("    service: {service}\n"))
        .unwrap_or_default();
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  labels:
    app: {name}
{service}spec:
  nodeName: {node}
  serviceAccountName: {service_account}
  containers:
  - name: app
    image: app
status:
  phase: Running
  podIP: {v4}
  podIPs:
  - ip: {v4}
  - ip: '{v6}'
  conditions:
  - type: Ready
    status: 'True'
---
",
        name = spec.name,
        namespace = spec.namespace,
        node = pod.node(),
        service_account = spec.service_account,
    )
}

/// A service over the pods whose label `service` is `name`.
pub fn service(namespace: &str, name: &str, address: Addresses, ports: &[ServicePort]) -> String {
    let Addresses { v4, v6 } = address;
    let mut yaml = format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  clusterIP: {v4}
  clusterIPs:
  - {v4}
  - '{v6}'
  ipFamilies: [IPv4, IPv6]
  selector:
    service: {name}
  ports:
"
    );
    for ServicePort { port, target } in ports {
        // Writing to a String cannot fail.
        let _ = writeln!(
            yaml,
            "  - name: tcp-{port}\n    port: {port}\n    targetPort: {target}\n    protocol: TCP"
        );
    }
    yaml.push_str("---\n");
    yaml
}
