//! Refusals in the form of the API: `v1` Status.
use http::StatusCode;
use serde_json::{Value, json};

/// Why a request was refused.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub code: StatusCode,
    reason: &'static str,
    message: String,
    /// Seconds after which the client may try again.
    pub retry_after: Option<u64>,
}

impl Status {
    fn new(code: StatusCode, reason: &'static str, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            retry_after: None,
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message.into())
    }

    pub fn not_found(what: &str, name: &str) -> Self {
        let message = format!("{what} {name:?} not found");
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// The answer for a resource type that does not exist.
    pub fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource".to_owned();
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub fn already_exists(what: &str, name: &str) -> Self {
        let message = format!("{what} {name:?} already exists");
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message)
    }

    pub fn stale(what: &str, name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {what} {name:?}: the object has been modified; \
             please apply your changes to the latest version and try again"
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// Another manager owns fields that were applied.
    pub fn owned(owner: &str, fields: &[String]) -> Self {
        let message = format!(
            "Apply failed with {} conflict(s) with {owner:?}: {}",
            fields.len(),
            fields.join(", ")
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    pub fn invalid(message: String) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    pub fn expired(from: u64, oldest: u64) -> Self {
        let message = format!("too old resource version: {from} ({oldest})");
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub fn too_large_version(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource".to_owned();
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub fn unsupported_media_type(found: &str) -> Self {
        let message = format!("the body of the request was in an unknown format: {found}");
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            message,
        )
    }

    /// A refusal that a test asked for.
    pub fn injected(code: StatusCode) -> Self {
        let reason = match code {
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::CONFLICT => "Conflict",
            StatusCode::GONE => "Expired",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            StatusCode::GATEWAY_TIMEOUT => "Timeout",
            _ => "InternalError",
        };
        let message = format!("refused with {code} by the test");
        Self {
            retry_after: (code == StatusCode::TOO_MANY_REQUESTS).then_some(1),
            ..Self::new(code, reason, message)
        }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        })
    }
}
