//! The servers of a pod: nginx with one page from memory, and iperf3.

use std::fs;
use std::path::Path;

use undermesh_tests::process::Running;
use undermesh_tests::{Context, Pod, Result};

/// The port of nginx.
pub const HTTP_PORT: u16 = 8080;

/// The port of iperf3.
pub const IPERF_PORT: u16 = 5201;

/// The size of the one page, in bytes.
pub const PAGE_SIZE: usize = 1024;

/// The servers of one pod; they end with this handle.
#[derive(Debug)]
pub struct Servers {
    _nginx: Running,
    _iperf3: Running,
}

impl Servers {
    /// Starts the servers in `pod` and waits until they listen.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(pod: &Pod) -> Result<Self> {
        let file = pod.folder().join("bench-nginx.conf");
        fs::write(&file, nginx_configuration(pod.folder()))
            .context(|| format!("write {}", file.display()))?;
        let mut nginx = pod.spawn("nginx", ["-e", "stderr", "-c", &file.to_string_lossy()])?;
        let mut iperf3 = pod.spawn("iperf3", ["--server"])?;
        nginx.wait_listening(HTTP_PORT)?;
        iperf3.wait_listening(IPERF_PORT)?;
        Ok(Self {
            _nginx: nginx,
            _iperf3: iperf3,
        })
    }
}

/// Two workers, because the machine that the floors were measured on has two cores. Nothing is logged,
/// and no connection is ever closed for its age or its number of requests.
fn nginx_configuration(folder: &Path) -> String {
    let folder = folder.display();
    let page = "x".repeat(PAGE_SIZE);
    format!(
        "daemon off;
user root;
worker_processes 2;
pid {folder}/bench-nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1d;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {HTTP_PORT} backlog=4096;
    listen [::]:{HTTP_PORT} backlog=4096;
    location / {{ return 200 '{page}'; }}
  }}
}}
"
    )
}
