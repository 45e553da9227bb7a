//! How an application is asked whether it is well: the probe of a WorkloadGroup, with Kubernetes' meaning.
//!
//! Source: `networking.istio.io/v1` ReadinessProbe, whose fields are those of Kubernetes' Probe.
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest of the times of a probe.
pub const MAX_SECONDS: i64 = 24 * 60 * 60;
/// Most results in a row that a probe may wait for.
pub const MAX_THRESHOLD: i64 = 1000;
/// Most headers of a request.
pub const MAX_HEADERS: usize = 64;
/// Most words of a command.
pub const MAX_WORDS: usize = 64;
/// Longest text in a probe, in bytes.
pub const MAX_TEXT: usize = 4096;

/// A probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Probe {
    /// What is done.
    pub check: Check,
    /// When, and what counts.
    pub pace: Pace,
}

/// One way to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A request over HTTP; a status from 200 to 399 is success.
    Http(HttpCheck),
    /// A connection that comes about.
    Tcp(Target),
    /// A command that ends with 0. It runs as the agent does.
    Exec(Vec<String>),
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name or address; without it the machine's own.
    pub host: Option<String>,
    /// Port.
    pub port: u16,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// Where it goes.
    pub target: Target,
    /// Whether it goes over TLS. The certificate is not judged, as by kubelet.
    pub scheme: Scheme,
    /// What is asked for.
    pub path: http::uri::PathAndQuery,
    /// More headers; `Host` takes the place of the target's.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
}

/// How a request travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In clear.
    Http,
    /// Over TLS.
    Https,
}

/// When a probe is made, and how many results count. Kubernetes' defaults stand for what is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Before the first one [0 s].
    pub initial_delay: Duration,
    /// Longest time for one [1 s].
    pub timeout: Duration,
    /// From one to the next [10 s].
    pub period: Duration,
    /// Successes in a row that make it healthy [1].
    pub successes: u32,
    /// Failures in a row that make it unhealthy [3].
    pub failures: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            initial_delay: Duration::ZERO,
            timeout: Duration::from_secs(1),
            period: Duration::from_secs(10),
            successes: 1,
            failures: 3,
        }
    }
}

/// Why a probe cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Not exactly one of the ways.
    #[error("the probe has {0} of httpGet, tcpSocket and exec; give exactly one")]
    Checks(usize),
    /// A way that is not offered.
    #[error("a probe by gRPC is not made here; use tcpSocket or httpGet")]
    Grpc,
    /// A number out of its range.
    #[error("{field} is {value}; give a number from 0 to {most}")]
    Number {
        /// The field.
        field: &'static str,
        /// What it says.
        value: i64,
        /// The most that it may say.
        most: i64,
    },
    /// No port.
    #[error("port is {0}; give a number from 1 to 65535")]
    Port(i64),
    /// A text that cannot be used.
    #[error("{field} is {value:?}, which is not {wanted}")]
    Text {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// Too much of something.
    #[error("the probe has {count} {what}; at most {most} are taken")]
    Count {
        /// What.
        what: &'static str,
        /// How many.
        count: usize,
        /// The most.
        most: usize,
    },
}

/// The form in a WorkloadGroup; 0 stands for what is not given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Fields {
    initial_delay_seconds: i64,
    timeout_seconds: i64,
    period_seconds: i64,
    success_threshold: i64,
    failure_threshold: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_get: Option<HttpFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp_socket: Option<TcpFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec: Option<ExecFields>,
    #[serde(skip_serializing)]
    grpc: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HttpFields {
    path: String,
    port: i64,
    host: String,
    scheme: String,
    http_headers: Vec<HeaderFields>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct HeaderFields {
    name: String,
    value: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct TcpFields {
    host: String,
    port: i64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ExecFields {
    command: Vec<String>,
}

impl TryFrom<Fields> for Probe {
    type Error = ProbeError;

    fn try_from(fields: Fields) -> Result<Self, ProbeError> {
        let pace = Pace::read(&fields)?;
        if fields.grpc.is_some() {
            return Err(ProbeError::Grpc);
        }
        let check = match (fields.http_get, fields.tcp_socket, fields.exec) {
            (Some(http), None, None) => Check::Http(HttpCheck::read(http)?),
            (None, Some(tcp), None) => Check::Tcp(target(tcp.host, tcp.port)?),
            (None, None, Some(exec)) => Check::Exec(command(exec.command)?),
            (http, tcp, exec) => {
                let given = [http.is_some(), tcp.is_some(), exec.is_some()];
                let count = given.into_iter().filter(|given| *given).count();
                return Err(ProbeError::Checks(count));
            }
        };
        Ok(Self { check, pace })
    }
}

impl Pace {
    fn read(fields: &Fields) -> Result<Self, ProbeError> {
        let default = Self::default();
        let seconds = |field, value, default| {
            let seconds = number(field, value, MAX_SECONDS)?;
            Ok(seconds.map_or(default, |it| Duration::from_secs(it.into())))
        };
        let count =
            |field, value, default| Ok(number(field, value, MAX_THRESHOLD)?.unwrap_or(default));
        Ok(Self {
            initial_delay: seconds(
                "initialDelaySeconds",
                fields.initial_delay_seconds,
                default.initial_delay,
            )?,
            timeout: seconds("timeoutSeconds", fields.timeout_seconds, default.timeout)?,
            period: seconds("periodSeconds", fields.period_seconds, default.period)?,
            successes: count(
                "successThreshold",
                fields.success_threshold,
                default.successes,
            )?,
            failures: count(
                "failureThreshold",
                fields.failure_threshold,
                default.failures,
            )?,
        })
    }
}

/// A number that is given; 0 is none.
fn number(field: &'static str, value: i64, most: i64) -> Result<Option<u32>, ProbeError> {
    let wrong = || ProbeError::Number { field, value, most };
    if value > most {
        return Err(wrong());
    }
    let number = u32::try_from(value).map_err(|_| wrong())?;
    Ok((number > 0).then_some(number))
}

impl HttpCheck {
    fn read(fields: HttpFields) -> Result<Self, ProbeError> {
        let path = match &*fields.path {
            "" => "/".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        let path = bounded("path", path)?;
        let path = path.parse().map_err(|_| ProbeError::Text {
            field: "path",
            value: path.clone(),
            wanted: "the path of a URL",
        })?;
        if fields.http_headers.len() > MAX_HEADERS {
            return Err(ProbeError::Count {
                what: "headers",
                count: fields.http_headers.len(),
                most: MAX_HEADERS,
            });
        }
        let headers = fields.http_headers.into_iter().map(header);
        Ok(Self {
            target: target(fields.host, fields.port)?,
            scheme: match &*fields.scheme.to_ascii_uppercase() {
                "" | "HTTP" => Scheme::Http,
                "HTTPS" => Scheme::Https,
                _ => {
                    return Err(ProbeError::Text {
                        field: "scheme",
                        value: shown(&fields.scheme),
                        wanted: "HTTP or HTTPS",
                    });
                }
            },
            path,
            headers: headers.collect::<Result<_, _>>()?,
        })
    }
}

fn header(fields: HeaderFields) -> Result<(http::HeaderName, http::HeaderValue), ProbeError> {
    let wrong = |value: &str| ProbeError::Text {
        field: "httpHeaders",
        value: shown(value),
        wanted: "a header of HTTP",
    };
    let name = bounded("httpHeaders", fields.name)?;
    let value = bounded("httpHeaders", fields.value)?;
    Ok((
        name.parse().map_err(|_| wrong(&name))?,
        value.parse().map_err(|_| wrong(&name))?,
    ))
}

fn target(host: String, port: i64) -> Result<Target, ProbeError> {
    let number = u16::try_from(port).ok().filter(|port| *port > 0);
    let is_host = host.len() <= 253
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte));
    if !is_host {
        return Err(ProbeError::Text {
            field: "host",
            value: shown(&host),
            wanted: "a name or an address",
        });
    }
    Ok(Target {
        host: (!host.is_empty()).then_some(host),
        port: number.ok_or(ProbeError::Port(port))?,
    })
}

fn command(words: Vec<String>) -> Result<Vec<String>, ProbeError> {
    if words.is_empty() || words.len() > MAX_WORDS {
        return Err(ProbeError::Count {
            what: "words in the command",
            count: words.len(),
            most: MAX_WORDS,
        });
    }
    words
        .into_iter()
        .map(|word| bounded("command", word))
        .collect()
}

/// A text that is not too long, and that the system takes.
fn bounded(field: &'static str, text: String) -> Result<String, ProbeError> {
    if text.len() > MAX_TEXT || text.contains('\0') {
        return Err(ProbeError::Text {
            field,
            value: shown(&text),
            wanted: "a text of at most 4096 bytes without NUL",
        });
    }
    Ok(text)
}

/// As much of a text as is worth showing.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

impl From<Probe> for Fields {
    fn from(probe: Probe) -> Self {
        let Probe { check, pace } = probe;
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(MAX_SECONDS);
        let mut fields = Self {
            initial_delay_seconds: seconds(pace.initial_delay),
            timeout_seconds: seconds(pace.timeout),
            period_seconds: seconds(pace.period),
            success_threshold: pace.successes.into(),
            failure_threshold: pace.failures.into(),
            ..Self::default()
        };
        match check {
            Check::Http(http) => fields.http_get = Some(http.into()),
            Check::Tcp(Target { host, port }) => {
                fields.tcp_socket = Some(TcpFields {
                    host: host.unwrap_or_default(),
                    port: port.into(),
                });
            }
            Check::Exec(command) => fields.exec = Some(ExecFields { command }),
        }
        fields
    }
}

impl From<HttpCheck> for HttpFields {
    fn from(check: HttpCheck) -> Self {
        let header = |(name, value): (http::HeaderName, http::HeaderValue)| HeaderFields {
            name: name.to_string(),
            value: value.to_str().unwrap_or_default().to_owned(),
        };
        Self {
            path: check.path.to_string(),
            port: check.target.port.into(),
            host: check.target.host.unwrap_or_default(),
            scheme: match check.scheme {
                Scheme::Http => "HTTP".to_owned(),
                Scheme::Https => "HTTPS".to_owned(),
            },
            http_headers: check.headers.into_iter().map(header).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
