//! The real Kubernetes API server with its etcd, on a host of the fabric.
//!
//! The programs are those that `KUBEBUILDER_ASSETS` names, as for the test environments of Kubernetes
//! controllers: a folder with `kube-apiserver` and `etcd`.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::poll_within;
use crate::api::Api;
use crate::process::Running;
use crate::testbed::Outside;
use crate::{Context, Error, Result};

/// Names the folder of the programs.
pub const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// The port of the API.
const API_PORT: u16 = 6443;
/// The port of etcd, on the host's loopback address alone.
const ETCD_PORT: u16 = 2379;
/// How long both programs may take to start: half a minute and more on a machine that is busy.
const START_LIMIT: Duration = Duration::from_secs(120);
/// The token of an administrator, known in this run only.
const TOKEN: &str = "testbed-administrator";

/// A running API server.
#[derive(Debug)]
pub struct KubeApiServer {
    api: Api,
    certificate: PathBuf,
    _programs: [Running; 2],
}

/// The folder with both programs.
///
/// # Errors
/// What is missing, as the reason to skip a test.
pub fn assets() -> std::result::Result<PathBuf, String> {
    let folder = env::var_os(ASSETS_VARIABLE)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{ASSETS_VARIABLE} names no folder with kube-apiserver and etcd"))?;
    for program in ["kube-apiserver", "etcd"] {
        if !folder.join(program).is_file() {
            return Err(format!(
                "there is no {program} in {ASSETS_VARIABLE} ({})",
                folder.display()
            ));
        }
    }
    Ok(folder)
}

impl KubeApiServer {
    /// Starts both programs on `host` and waits until the API is ready.
    ///
    /// # Errors
    /// When a program is missing or does not become ready.
    pub fn start(host: Outside) -> Result<Self> {
        let assets = assets().map_err(|reason| Error::step("find the API server", reason))?;
        let folder = host.place.folder().to_owned();
        let mut etcd = spawn_etcd(&host, &assets)?;
        etcd.wait_listening(ETCD_PORT)?;
        let address = IpAddr::from(host.addresses.v4);
        let program = spawn_api(&host, &assets, &folder, address)?;
        let certificate = folder.join("apiserver/apiserver.crt");
        let server = Self {
            api: Api {
                url: format!("https://{address}:{API_PORT}"),
                credentials: vec![
                    "--cacert".to_owned(),
                    certificate.display().to_string(),
                    "--header".to_owned(),
                    format!("Authorization: Bearer {TOKEN}"),
                ],
                host,
            },
            certificate,
            _programs: [etcd, program],
        };
        poll_within(START_LIMIT, "wait until the API server is ready", || {
            let ready = server.api.request("GET", "readyz", None);
            Ok(ready.is_ok_and(|answer| answer == "ok"))
        })?;
        Ok(server)
    }

    /// How it is reached, as the administrator.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// A kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> String {
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "testbed",
            "clusters": [{ "name": "testbed", "cluster": {
                "server": self.api.url, "certificate-authority": self.certificate,
            } }],
            "users": [{ "name": "testbed", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": "testbed" } }],
        })
        .to_string()
    }
}

fn spawn_etcd(host: &Outside, assets: &Path) -> Result<Running> {
    let client = format!("http://127.0.0.1:{ETCD_PORT}");
    host.place.spawn(
        &assets.join("etcd").to_string_lossy(),
        [
            "--data-dir",
            "etcd",
            "--unsafe-no-fsync",
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            "http://127.0.0.1:0",
        ],
    )
}

fn spawn_api(host: &Outside, assets: &Path, folder: &Path, address: IpAddr) -> Result<Running> {
    fs::write(
        folder.join("tokens.csv"),
        format!("{TOKEN},administrator,administrator,system:masters\n"),
    )
    .context(|| "write the tokens of the API server")?;
    host.place
        .output(
            "openssl",
            ["genrsa", "-out", "service-accounts.key", "2048"],
        )?
        .success()?;
    let (address, port) = (address.to_string(), API_PORT.to_string());
    let etcd = format!("http://127.0.0.1:{ETCD_PORT}");
    host.place.spawn(
        &assets.join("kube-apiserver").to_string_lossy(),
        [
            "--etcd-servers",
            &etcd,
            "--bind-address",
            &address,
            "--advertise-address",
            &address,
            "--secure-port",
            &port,
            "--cert-dir",
            "apiserver",
            "--token-auth-file",
            "tokens.csv",
            "--authorization-mode",
            "RBAC",
            "--service-account-issuer",
            "https://kubernetes.default.svc.cluster.local",
            "--service-account-key-file",
            "service-accounts.key",
            "--service-account-signing-key-file",
            "service-accounts.key",
            "--api-audiences",
            "https://kubernetes.default.svc.cluster.local",
            "--service-cluster-ip-range",
            "10.96.0.0/16",
            "--allow-privileged",
            "--endpoint-reconciler-type",
            "none",
            "--disable-admission-plugins",
            "ServiceAccount",
        ],
    )
}
