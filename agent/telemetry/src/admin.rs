//! What the loopback servers answer: administration (15000), metrics (15020) and readiness (15021).
//!
//! Source: ztunnel's admin, stats and readiness servers, whose paths and ports these are.
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use http::{Method, StatusCode};

use crate::{
    http::{Handler, Request, Response},
    logging::Logging,
    readiness::Readiness,
    telemetry::Telemetry,
};

/// Content type of the Prometheus text form.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Gives the configuration as JSON; called on the administration's runtime.
pub type ConfigDump = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// Answers on the administration address.
#[derive(Clone)]
pub struct Admin {
    /// The configuration in force.
    pub config: ConfigDump,
    /// The program's log.
    pub logging: Logging,
    /// What is shown as ready.
    pub readiness: Readiness,
    /// What is shown as metrics.
    pub telemetry: Telemetry,
}

/// Answers on the stats address.
#[derive(Clone, Debug)]
pub struct Stats(pub Telemetry);

/// Answers on the readiness address.
#[derive(Clone, Debug)]
pub struct Ready(pub Readiness);

impl Handler for Admin {
    fn handle(&self, request: Request) -> BoxFuture<'_, Response> {
        let get = request.method == Method::GET;
        let response = match request.segments()[..] {
            ["config_dump"] if get => config_dump(&self.config),
            ["healthz", "ready"] if get => readiness(&self.readiness),
            ["metrics"] if get => metrics(&self.telemetry),
            ["logging"] if get || request.method == Method::POST => {
                logging(&self.logging, &request)
            }
            ["config_dump" | "metrics"] | ["healthz", "ready"] => not_allowed("GET"),
            ["logging"] => not_allowed("GET, POST"),
            _ => not_found("/config_dump, /logging, /healthz/ready, /metrics"),
        };
        Box::pin(ready(response))
    }
}

impl Handler for Stats {
    fn handle(&self, request: Request) -> BoxFuture<'_, Response> {
        let response = match request.segments()[..] {
            ["metrics"] | ["stats", "prometheus"] if request.method == Method::GET => {
                metrics(&self.0)
            }
            ["metrics"] | ["stats", "prometheus"] => not_allowed("GET"),
            _ => not_found("/metrics, /stats/prometheus"),
        };
        Box::pin(ready(response))
    }
}

impl Handler for Ready {
    fn handle(&self, request: Request) -> BoxFuture<'_, Response> {
        let response = match request.segments()[..] {
            ["healthz", "ready"] if request.method == Method::GET => readiness(&self.0),
            ["healthz", "ready"] => not_allowed("GET"),
            _ => not_found("/healthz/ready"),
        };
        Box::pin(ready(response))
    }
}

fn config_dump(config: &ConfigDump) -> Response {
    match config() {
        Ok(json) => Response::json(StatusCode::OK, json),
        Err(error) => Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn readiness(readiness: &Readiness) -> Response {
    let pending = readiness.pending();
    if pending.is_empty() {
        return Response::text(StatusCode::OK, "ready\n");
    }
    let list = format!("not ready, waiting for: {}\n", pending.join(", "));
    Response::text(StatusCode::INTERNAL_SERVER_ERROR, list)
}

fn metrics(telemetry: &Telemetry) -> Response {
    match telemetry.scrape() {
        Ok(text) => Response {
            content_type: PROMETHEUS,
            ..Response::text(StatusCode::OK, text)
        },
        Err(error) => Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// A level is changed by POST only, so that following a link never does it.
fn logging(logging: &Logging, request: &Request) -> Response {
    match request.parameter("level") {
        Some(_) if request.method == Method::GET => not_allowed("POST"),
        Some(directives) => match logging.set_level(directives) {
            Ok(()) => level(logging),
            Err(error) => Response::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        },
        None => level(logging),
    }
}

fn level(logging: &Logging) -> Response {
    Response::text(
        StatusCode::OK,
        format!("current log level is {}\n", logging.level()),
    )
}

fn not_allowed(allow: &'static str) -> Response {
    let body = Bytes::from(format!("this path takes {allow}\n"));
    let response = Response::text(StatusCode::METHOD_NOT_ALLOWED, body);
    Response {
        allow: Some(allow),
        ..response
    }
}

fn not_found(paths: &str) -> Response {
    Response::text(
        StatusCode::NOT_FOUND,
        format!("no such path; there are {paths}\n"),
    )
}

#[cfg(test)]
mod tests;
