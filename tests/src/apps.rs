//! Real applications in pods: their configuration, their start and their clients.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use crate::process::{Output, Running};
use crate::{Context, Place, Pod, Result};

/// Debian's user `nobody` and its group: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// How long a benchmark client may run beyond the time it was given.
const GRACE: Duration = Duration::from_secs(30);

/// An application that was started in a pod and ends when it is dropped.
#[derive(Debug)]
pub struct App {
    /// The process.
    pub process: Running,
    /// The port it listens on.
    pub port: u16,
}

impl App {
    fn start(place: &Place, port: u16, program: &str, arguments: &[&str]) -> Result<Self> {
        let mut process = place.spawn(program, arguments)?;
        process.wait_listening(port)?;
        Ok(Self { process, port })
    }
}

/// The port of [`nginx`].
pub const NGINX_PORT: u16 = 8080;

/// The size of the page at `/` of [`nginx`]: what load generators fetch.
pub const PAGE_SIZE: usize = 1024;

/// Starts nginx. It answers `/` with a page of 1 KiB, `/name` with the pod's name, `/peer` with the
/// client's address and `/echo/...` with the path itself.
///
/// # Errors
/// When it does not start.
pub fn nginx(pod: &Pod) -> Result<App> {
    nginx_named(pod, &pod.spec().name)
}

/// As [`nginx`], in any place: `/name` answers `name`.
///
/// # Errors
/// When it does not start.
pub fn nginx_named(place: &Place, name: &str) -> Result<App> {
    let folder = place.folder().join("nginx");
    fs::create_dir_all(&folder).context(|| format!("create {}", folder.display()))?;
    let file = |file: &str, text: &str| {
        fs::write(folder.join(file), text).context(|| format!("write {file} of nginx"))
    };
    file("index.html", &"undermesh\n".repeat(PAGE_SIZE)[..PAGE_SIZE])?;
    file("nginx.conf", &nginx_configuration(&folder, name))?;
    let configuration = folder.join("nginx.conf");
    App::start(
        place,
        NGINX_PORT,
        "nginx",
        &["-e", "stderr", "-c", &configuration.to_string_lossy()],
    )
}

fn nginx_configuration(folder: &Path, name: &str) -> String {
    let folder = folder.display();
    format!(
        "daemon off;
user root;
worker_processes 1;
pid {folder}/pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  default_type text/plain;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {NGINX_PORT} backlog=4096;
    listen [::]:{NGINX_PORT} backlog=4096;
    root {folder};
    location /name {{ return 200 '{name}'; }}
    location /peer {{ return 200 '$remote_addr'; }}
    location /echo/ {{ return 200 '$uri'; }}
  }}
}}
"
    )
}

/// The port of [`redis`].
pub const REDIS_PORT: u16 = 6379;

/// Starts a redis server that keeps nothing on disk.
///
/// # Errors
/// When it does not start.
pub fn redis(place: &Place) -> Result<App> {
    let arguments = [
        "--bind",
        "*",
        "-::*",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
    ];
    App::start(place, REDIS_PORT, "redis-server", &arguments)
}

/// Sends one command to a redis server.
///
/// # Errors
/// When the client cannot be started.
pub fn redis_cli(place: &Place, server: IpAddr, port: u16, command: &[&str]) -> Result<Output> {
    let (server, port) = (server.to_string(), port.to_string());
    place.output(
        "redis-cli",
        [&["-h", &server, "-p", &port], command].concat(),
    )
}

/// The port of [`postgres`].
pub const POSTGRES_PORT: u16 = 5432;

/// Makes a database and starts PostgreSQL on it, as an unprivileged user.
///
/// # Errors
/// When it does not start.
pub fn postgres(place: &Place) -> Result<App> {
    let folder = place.folder().join("postgres");
    fs::create_dir_all(&folder)
        .and_then(|()| std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY)))
        .context(|| format!("create {}", folder.display()))?;
    let data = folder.join("data");
    let data = data.to_string_lossy();
    let identity = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let initialize = [
        "initdb",
        "--no-sync",
        "--auth=trust",
        "--username=shop",
        "-D",
        &data,
    ];
    place
        .output("setpriv", [&identity[..], &initialize].concat())?
        .success()?;
    allow_everyone(&folder.join("data/pg_hba.conf"))?;
    let sockets = folder.to_string_lossy();
    let serve = [
        "postgres",
        "-D",
        &data,
        "-k",
        &sockets,
        "-c",
        "listen_addresses=*",
        "-c",
        "fsync=off",
    ];
    App::start(
        place,
        POSTGRES_PORT,
        "setpriv",
        &[&identity[..], &serve].concat(),
    )
}

fn allow_everyone(rules: &Path) -> Result<()> {
    fs::write(rules, "local all all trust\nhost all all all trust\n")
        .context(|| format!("write {}", rules.display()))
}

/// Runs SQL on a PostgreSQL server and returns bare rows.
///
/// # Errors
/// When the client cannot be started.
pub fn psql(place: &Place, server: IpAddr, port: u16, sql: &str) -> Result<Output> {
    let target = format!("host={server} port={port} user=shop dbname=postgres connect_timeout=20");
    place.output(
        "psql",
        [
            "-X",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            sql,
            &target,
        ],
    )
}

/// The port of [`iperf3`].
pub const IPERF_PORT: u16 = 5201;

/// Starts an iperf3 server.
///
/// # Errors
/// When it does not start.
pub fn iperf3(place: &Place) -> Result<App> {
    App::start(place, IPERF_PORT, "iperf3", &["--server"])
}

/// Runs an iperf3 client for `seconds` with its answer in JSON.
///
/// # Errors
/// When the client cannot be started or hangs.
pub fn iperf3_client(
    place: &Place,
    server: IpAddr,
    port: u16,
    seconds: u64,
    more: &[&str],
) -> Result<Output> {
    let (server, port, time) = (server.to_string(), port.to_string(), seconds.to_string());
    let base = [
        "--client", &server, "--port", &port, "--time", &time, "--json",
    ];
    place.output_within(
        Duration::from_secs(seconds) + GRACE,
        "iperf3",
        [&base[..], more].concat(),
    )
}

/// Runs the load generator wrk for `seconds`.
///
/// # Errors
/// When it cannot be started or hangs.
pub fn wrk(place: &Place, url: &str, connections: u32, seconds: u64) -> Result<Output> {
    let (connections, time) = (connections.to_string(), format!("{seconds}s"));
    place.output_within(
        Duration::from_secs(seconds) + GRACE,
        "wrk",
        ["-t", "1", "-c", &connections, "-d", &time, "--latency", url],
    )
}
