//! The server's side of the API: routes, and what each asks of the [`Node`].
use std::sync::Arc;

use futures::future::BoxFuture;
use http::{Method, StatusCode};
use serde::Serialize;
use undermesh_capture::Enrollment;
use undermesh_telemetry::http::{Handler, Request, Response};

use super::{
    Node, Refusal,
    types::{EnrollRequest, ErrorBody, LogLevel, PodKey},
};
use crate::duration;

/// Answers on the socket.
#[derive(Clone)]
pub struct Api(pub Arc<dyn Node>);

impl Handler for Api {
    /// Runs on a task of its own: a client that goes away in the middle does not leave a pod half enrolled.
    fn handle(&self, request: Request) -> BoxFuture<'_, Response> {
        let node = Arc::clone(&self.0);
        let answer = tokio::spawn(async move { answer(&*node, &request).await });
        Box::pin(async move {
            match answer.await {
                Ok(Ok(response)) => response,
                Ok(Err(refusal)) => refused(&refusal),
                Err(error) => refused(&Refusal::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("the request broke off: {error}"),
                    "see the agent's log",
                )),
            }
        })
    }
}

async fn answer(node: &dyn Node, request: &Request) -> Result<Response, Refusal> {
    let segments = request.segments();
    let ["v1", path @ ..] = &segments[..] else {
        return Err(no_such_path());
    };
    match (path, &request.method) {
        (["pods"], &Method::GET) => json(&node.pods()),
        (["pods"], &Method::POST) => json(&node.enroll(enrollment(request)?).await?),
        (["pods", namespace, name], &Method::DELETE) => {
            let pod = PodKey {
                namespace: (*namespace).into(),
                name: (*name).into(),
            };
            let drain = request
                .parameter("timeout")
                .map(duration::parse)
                .transpose();
            json(&node.release(pod, drain.map_err(bad_request)?).await?)
        }
        (["status"], &Method::GET) => json(&node.status()),
        (["connections"], &Method::GET) => json(&node.connections()),
        (["certificates"], &Method::GET) => json(&node.certificates()),
        (["config"], &Method::GET) => Ok(Response::json(StatusCode::OK, node.config()?)),
        (["log"], &Method::GET) if request.parameter("level").is_none() => log_level(node),
        (["log"], &Method::POST) => {
            if let Some(directives) = request.parameter("level") {
                node.set_log_level(directives)?;
            }
            log_level(node)
        }
        (["log"], _) => Err(not_allowed("GET, or POST to change the level")),
        (["pods"], _) => Err(not_allowed("GET or POST")),
        (["pods", _, _], _) => Err(not_allowed("DELETE")),
        (["status" | "connections" | "certificates" | "config"], _) => Err(not_allowed("GET")),
        _ => Err(no_such_path()),
    }
}

fn enrollment(request: &Request) -> Result<Enrollment, Refusal> {
    let body: EnrollRequest = serde_json::from_slice(&request.body).map_err(|error| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not an enrollment: {error}"),
            "send JSON with netns, namespace, name and serviceAccount",
        )
    })?;
    Enrollment::new(
        body.netns,
        &body.namespace,
        &body.name,
        &body.service_account,
    )
    .map_err(bad_request)
}

fn log_level(node: &dyn Node) -> Result<Response, Refusal> {
    json(&LogLevel {
        level: node.log_level(),
    })
}

fn json(value: &impl Serialize) -> Result<Response, Refusal> {
    serde_json::to_vec(value)
        .map(|body| Response::json(StatusCode::OK, body))
        .map_err(|error| {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the answer has no JSON form: {error}"),
                "report this as a bug",
            )
        })
}

fn refused(refusal: &Refusal) -> Response {
    let body = ErrorBody {
        error: refusal.error.clone(),
        remedy: refusal.remedy.clone(),
    };
    // Two strings always have a JSON form.
    Response::json(
        refusal.status,
        serde_json::to_vec(&body).unwrap_or_default(),
    )
}

fn bad_request(error: impl std::error::Error) -> Refusal {
    Refusal::from_error(StatusCode::BAD_REQUEST, &error)
}

fn not_allowed(methods: &str) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path does not take that method",
        format!("use {methods}"),
    )
}

fn no_such_path() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "there is no such path",
        "use /v1/pods, /v1/status, /v1/connections, /v1/certificates, /v1/config or /v1/log",
    )
}
