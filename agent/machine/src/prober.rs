//! Asks an application again and again whether it is well.
use std::{io, net::IpAddr, pin::pin, process::Stdio, sync::Arc, time::Duration};

use http::{HeaderMap, Request, header};
use http_body_util::Empty;
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    process::{Child, Command},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{
    monitor::{Monitor, Verdict},
    probe::{Check, HttpCheck, Probe, Scheme, Target},
};

mod unjudged;

/// What applications see in the `User-Agent` of a probe.
const USER_AGENT: &str = concat!("undermesh-probe/", env!("CARGO_PKG_VERSION"));

/// Probes for ever and reports what changes. `address` is the machine's own, which targets without a host mean.
pub async fn run(probe: Probe, address: IpAddr, mut report: impl FnMut(Verdict)) {
    let Probe { check, pace } = probe;
    let mut monitor = Monitor::new(pace);
    sleep(pace.initial_delay).await;
    let mut ticks = interval(pace.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = once(&check, address, pace.timeout).await;
        if let Some(verdict) = monitor.take(result) {
            report(verdict);
        }
    }
}

/// Probes once.
///
/// # Errors
/// Why the application does not count as well.
pub async fn once(check: &Check, address: IpAddr, limit: Duration) -> Result<(), String> {
    match check {
        // It ends its processes by itself when time is up.
        Check::Exec(command) => exec(command, limit).await,
        Check::Http(check) => in_time(limit, http(check, address)).await,
        Check::Tcp(target) => in_time(limit, connect(target, address)).await.map(drop),
    }
}

async fn in_time<T>(
    limit: Duration,
    probe: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    timeout(limit, probe)
        .await
        .unwrap_or_else(|_| Err(late(limit)))
}

fn late(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs())
}

async fn connect(target: &Target, own: IpAddr) -> Result<TcpStream, String> {
    let connected = match &target.host {
        Some(host) => TcpStream::connect((host.trim_matches(['[', ']']), target.port)).await,
        None => TcpStream::connect((own, target.port)).await,
    };
    connected.map_err(|error| format!("cannot connect to port {}: {error}", target.port))
}

async fn http(check: &HttpCheck, own: IpAddr) -> Result<(), String> {
    let stream = connect(&check.target, own).await?;
    let status = match check.scheme {
        Scheme::Http => ask(stream, check, own).await?,
        Scheme::Https => {
            let config = unjudged::config().map_err(|error| error.to_string())?;
            let name = server_name(&check.target, own);
            let stream = TlsConnector::from(Arc::new(config))
                .connect(name, stream)
                .await
                .map_err(|error| format!("no TLS: {error}"))?;
            ask(stream, check, own).await?
        }
    };
    match status.as_u16() {
        200..400 => Ok(()),
        _ => Err(format!("the status is {status}")),
    }
}

fn server_name(target: &Target, own: IpAddr) -> ServerName<'static> {
    let named = target.host.clone().and_then(|host| host.try_into().ok());
    named.unwrap_or_else(|| ServerName::IpAddress(own.into()))
}

/// Sends the request; the answer's body is not read.
async fn ask<S>(stream: S, check: &HttpCheck, own: IpAddr) -> Result<http::StatusCode, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("no answer over HTTP: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let answer = sender.send_request(request(check, own)?);
    let mut answer = pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It is polled so that bytes move. When it ends, the answer is there or never comes.
        _ = connection => answer.await,
    };
    Ok(answer.map_err(failed)?.status())
}

fn request(check: &HttpCheck, own: IpAddr) -> Result<Request<Empty<Bytes>>, String> {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::USER_AGENT,
        header::HeaderValue::from_static(USER_AGENT),
    );
    headers.insert(header::ACCEPT, header::HeaderValue::from_static("*/*"));
    for (name, value) in &check.headers {
        headers.insert(name, value.clone());
    }
    if !headers.contains_key(header::HOST) {
        let host = match (&check.target.host, own) {
            (Some(host), _) => host.clone(),
            (None, IpAddr::V4(own)) => own.to_string(),
            (None, IpAddr::V6(own)) => format!("[{own}]"),
        };
        let host = format!("{host}:{}", check.target.port);
        let host = host
            .parse()
            .map_err(|_| "the host is no header".to_owned())?;
        headers.insert(header::HOST, host);
    }
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = check.path.clone().into();
    *request.headers_mut() = headers;
    Ok(request)
}

/// Runs a command in a process group of its own, which ends when time is up.
async fn exec(command: &[String], limit: Duration) -> Result<(), String> {
    let [program, arguments @ ..] = command else {
        return Err("there is no command".to_owned());
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let group = child.id();
    match timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{program} ended with {status}")),
        Ok(Err(error)) => Err(format!("{program} cannot be waited for: {error}")),
        Err(_) => {
            end(&mut child, group).await;
            Err(late(limit))
        }
    }
}

async fn end(child: &mut Child, group: Option<u32>) {
    let group = group.and_then(|group| i32::try_from(group).ok());
    if let Some(group) = group {
        // It fails when all of them have ended meanwhile.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    if let Err(error) = child.wait().await
        && error.kind() != io::ErrorKind::InvalidInput
    {
        tracing::warn!(%error, "a probe's command is left behind");
    }
}

#[cfg(test)]
mod tests;
