//! The node as a machine outside Kubernetes: what it joins with, and the processes that are its workload.
use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{net::lookup_host, task::spawn_blocking, time::sleep};
use undermesh_capture::{Enrollment, EnrollmentError, Scope};
use undermesh_identity::CertificateHandle;
use undermesh_machine::{
    JoinCredentials, JoinToken, Probe,
    address::{self, AddressError},
    join::{JoinError, MAX_BYTES},
    monitor::Verdict,
    prober,
};
use undermesh_model::Identity;
use undermesh_telemetry::readiness::ReadyGuard;
use undermesh_xds::{client::Client, health::Health};
use zeroize::Zeroizing;

use super::pods::Pods;
use crate::{
    api::types::PodKey,
    command::{AtStop, NodeOptions},
};

/// What stands for standard input.
const STANDARD_INPUT: &str = "-";
/// Pause after the machine could not be enrolled.
const RETRY: Duration = Duration::from_secs(2);
/// How often it is looked whether systemd has made the slice anew.
const FOLLOW: Duration = Duration::from_secs(1);
/// Where a socket is bound that shall only tell its address.
const ANY: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
];

/// Why a machine cannot join.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The join token cannot be read.
    #[error("the join token in {} cannot be read: {error}; give the file that holds it, or - for standard input", .path.display())]
    Read {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        error: io::Error,
    },
    /// It is none.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// It is too old.
    #[error(
        "the join token could be used until {expiry}; make another one with 'undermesh token create {group} -n {namespace}', since a machine keeps no key on its disk"
    )]
    Expired {
        /// Until when.
        expiry: String,
        /// Its group.
        group: String,
        /// The group's namespace.
        namespace: String,
    },
    /// The machine's own address is not found.
    #[error(
        "the address by which {controller} is reached cannot be found: {error}; give the machine's own with --address"
    )]
    Route {
        /// The controller.
        controller: String,
        /// What the system said.
        error: io::Error,
    },
    /// It cannot have that address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// It cannot be enrolled under its names.
    #[error(transparent)]
    Enrollment(#[from] EnrollmentError),
}

/// A machine that is to join, or has.
pub struct Machine {
    /// Where the controller is.
    pub controller: String,
    /// The roots that came with the join token.
    pub roots: String,
    /// What it proves itself with.
    pub credentials: Arc<JoinCredentials>,
    /// Name of its WorkloadGroup.
    pub group: String,
    identity: Identity,
    address: IpAddr,
    enrollment: Enrollment,
    probe: Option<Probe>,
    at_stop: AtStop,
}

impl Machine {
    /// Reads the join token, if the options name one. Returns the machine, and the options with what the token says of
    /// the cluster.
    ///
    /// # Errors
    /// When the token cannot be used, or the machine's address is not found.
    pub async fn open(
        options: NodeOptions,
    ) -> Result<(NodeOptions, Option<Arc<Self>>), MachineError> {
        let Some(path) = options.machine.join.clone() else {
            return Ok((options, None));
        };
        let text = read(&path).map_err(|error| MachineError::Read { path, error })?;
        let token: JoinToken = text.parse()?;
        if token.is_expired(OffsetDateTime::now_utc()) {
            return Err(MachineError::Expired {
                expiry: token.expiry(),
                group: token.group,
                namespace: token.identity.namespace.to_string(),
            });
        }
        let address = match options.machine.address {
            Some(address) => address,
            None => own_address(&token.controller).await?,
        };
        address::check(address)?;
        let name = address::entry_name(&token.group, address, &token.network)?;
        let machine = Self::new(&token, &name, address, options.machine.at_stop)?;
        let options = told(options, &token, &name, address);
        Ok((options, Some(Arc::new(machine))))
    }

    fn new(
        token: &JoinToken,
        name: &str,
        address: IpAddr,
        at_stop: AtStop,
    ) -> Result<Self, MachineError> {
        let identity = token.identity.clone();
        let (namespace, account) = (&identity.namespace, &identity.service_account);
        Ok(Self {
            controller: token.controller.clone(),
            roots: token.roots.clone(),
            credentials: Arc::new(JoinCredentials::new(
                token.token.clone(),
                token.roots.clone(),
            )),
            group: token.group.clone(),
            address,
            enrollment: Enrollment::machine([address], namespace, name, account)?,
            identity,
            probe: token.probe.clone(),
            at_stop,
        })
    }

    /// Enrolls the machine's processes as soon as there is a certificate, and then says how its application is, for
    /// ever. Call it once the pods of an earlier agent are served.
    pub async fn serve(self: Arc<Self>, pods: Arc<Pods>, client: Client, first: ReadyGuard) {
        let certificate = pods.certificates().acquire(&self.identity);
        self.credentials.follow(certificate.clone());
        self.enroll(&pods, &certificate).await;
        first.done();
        tokio::spawn(follow_slice(Arc::clone(&pods)));
        match &self.probe {
            None => client.report_health(Health::Healthy),
            Some(probe) => {
                let report = |verdict| client.report_health(health(verdict));
                prober::run(probe.clone(), self.address, report).await;
            }
        }
    }

    async fn enroll(&self, pods: &Pods, certificate: &CertificateHandle) {
        certificate.ready().await;
        let own = PodKey::of(&self.enrollment);
        loop {
            self.release_others(pods, &own).await;
            match pods.enroll_machine(self.enrollment.clone()).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(%error, "the machine is not in the mesh; trying again");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Lets go of what the machine was under another name, such as one of another address.
    async fn release_others(&self, pods: &Pods, own: &PodKey) {
        let enrolled = pods.capture.pods().into_iter();
        let machines = enrolled.filter_map(|(pod, _)| match pod.enrollment().scope() {
            Scope::Machine(_) => Some(PodKey::of(pod.enrollment())),
            Scope::Pod(_) => None,
        });
        for key in machines.filter(|key| key != own).collect::<Vec<_>>() {
            if let Err(error) = pods.give_back(&key).await {
                tracing::error!(%error, machine = %key, "could not be released");
            }
        }
    }

    /// Ends with the agent: the machine's processes leave the mesh, unless they are to stay captured.
    pub async fn end(&self, pods: &Pods, client: &Client) {
        client.report_health(Health::Unhealthy("the agent stops".to_owned()));
        if self.at_stop == AtStop::Keep {
            return;
        }
        let released = pods.give_back(&PodKey::of(&self.enrollment)).await;
        if let Err(error) = released {
            tracing::error!(%error, "the machine's processes stay captured");
        }
    }
}

fn health(verdict: Verdict) -> Health {
    match verdict {
        Verdict::Healthy => {
            tracing::info!("the machine's application is well");
            Health::Healthy
        }
        Verdict::Unhealthy(reason) => {
            tracing::warn!(reason, "the machine's application gets no traffic");
            Health::Unhealthy(reason)
        }
    }
}

/// The options with what a join token says of the cluster, and of the machine in it.
fn told(options: NodeOptions, token: &JoinToken, name: &str, address: IpAddr) -> NodeOptions {
    let mut told = options;
    told.node_name = Some(name.to_owned());
    told.trust_domain = token.identity.trust_domain.clone();
    told.cluster_id = token.cluster.clone();
    told.network = token.network.clone();
    told.control.control_plane = Some(token.controller.clone());
    told.control.control_plane_name = Some(token.controller_name.clone());
    told.control.pod_name = name.to_owned();
    told.control.pod_namespace = token.identity.namespace.to_string();
    told.control.instance_ip = Some(address);
    told
}

/// Follows the slice, which systemd makes anew when it is started again.
async fn follow_slice(pods: Arc<Pods>) {
    let mut told = None;
    loop {
        sleep(FOLLOW).await;
        let capture = Arc::clone(&pods.capture);
        let error = match spawn_blocking(move || capture.follow_cgroup()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error.as_ref().filter(|_| error != told) {
            tracing::error!(%error, "the machine's slice cannot be followed");
        }
        told = error;
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    if path.as_os_str() == STANDARD_INPUT {
        return read_bounded(io::stdin().lock());
    }
    read_bounded(File::open(path)?)
}

/// As much as a join token may have, and one byte more, by which a longer one is known.
fn read_bounded(source: impl Read) -> io::Result<Zeroizing<String>> {
    // Sized at once, so that a growing buffer leaves no copies behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES + 1));
    source
        .take(MAX_BYTES as u64 + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// The address that packets to the controller would have. No packet is sent.
async fn own_address(controller: &str) -> Result<IpAddr, MachineError> {
    let failed = |error| MachineError::Route {
        controller: controller.to_owned(),
        error,
    };
    let host = controller.trim_start_matches("https://");
    let host = host.split('/').next().unwrap_or_default();
    let mut found = Err(io::Error::from(io::ErrorKind::NotFound));
    for address in lookup_host(host).await.map_err(failed)? {
        found = source_of(address);
        if found.is_ok() {
            break;
        }
    }
    found.map_err(failed)
}

fn source_of(destination: SocketAddr) -> io::Result<IpAddr> {
    let [v4, v6] = ANY;
    let any = if destination.is_ipv4() { v4 } else { v6 };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(destination)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_machines_address_is_the_one_that_leads_to_the_controller() {
        let address = own_address("https://127.0.0.1:15012").await.unwrap();
        assert!(address.is_loopback());
        let error = own_address("https://").await.unwrap_err();
        assert!(error.to_string().contains("--address"), "{error}");
    }

    #[test]
    fn a_join_token_is_read_no_further_than_it_may_be_long() {
        let long = "A".repeat(3 * MAX_BYTES);
        let text = read_bounded(long.as_bytes()).unwrap();
        assert_eq!(text.len(), MAX_BYTES + 1);
        assert_eq!(text.parse::<JoinToken>(), Err(JoinError::Length));
    }
}
