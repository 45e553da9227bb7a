//! Who this replica is, and whom it lets ask for the identities of others.
use std::{collections::HashSet, fs};

use undermesh_ca::access::{NodeAccount, PodPlace, Pods};
use undermesh_kubernetes::pods::PodIndex;

use crate::command::ControllerOptions;

/// Service accounts of node agents in the controller's namespace: ours, and Istio's.
const NODE_ACCOUNTS: [&str; 2] = ["undermesh-node", "ztunnel"];

/// The pods that the source watches, as the certificate service asks for them.
pub struct KnownPods(pub PodIndex);

impl Pods for KnownPods {
    fn pod(&self, uid: &str) -> Option<PodPlace> {
        self.0.pod(uid).map(|pod| PodPlace {
            namespace: pod.namespace.to_string(),
            service_account: pod.service_account.to_string(),
            node: pod.node.as_deref().unwrap_or_default().to_owned(),
        })
    }

    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        self.0.runs_on(node, namespace, service_account)
    }
}

/// The accounts that may ask for others' identities: as told, or the usual ones.
pub fn node_accounts(options: &ControllerOptions) -> HashSet<NodeAccount> {
    if !options.node_accounts.is_empty() {
        return options.node_accounts.iter().cloned().collect();
    }
    let usual = NODE_ACCOUNTS.iter();
    usual
        .filter_map(|name| format!("{}/{name}", options.namespace).parse().ok())
        .collect()
}

/// This replica's name in the Lease: as told, or the host's with the process id.
pub fn replica(options: &ControllerOptions) -> String {
    options.name.clone().unwrap_or_else(|| {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{}-{}", host.trim(), std::process::id())
    })
}
