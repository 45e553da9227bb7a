//! The decision on one AdmissionReview (`admission.k8s.io/v1`).
//!
//! An object is refused for what is wrong with it alone. What translation finds depends on other objects or on a
//! waypoint, and is only a warning.
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use undermesh_control::{
    Change, Diagnostic, Engine, Settings, Severity,
    resources::{self, Decoded, Outcome, kinds::Kind, metadata::Origin, strings::Strings},
    value::Value,
};

/// The version that is spoken.
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Most warnings in an answer; the API server cuts them off at 4 KiB together.
const MAX_WARNINGS: usize = 12;
/// Longest warning, in characters; the API server cuts longer ones when there is not room for all.
const MAX_WARNING: usize = 256;
/// Most findings that a refusal names.
const MAX_REASONS: usize = 20;
/// Longest uid, which is echoed.
const MAX_UID: usize = 256;

/// Why a request cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not an AdmissionReview.
    #[error("the body is no AdmissionReview: {0}")]
    Form(#[from] serde_json::Error),
    /// Another version or kind, or nothing to review.
    #[error("the body is no request of {API_VERSION} {KIND}; set admissionReviewVersions: [v1]")]
    Version,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Incoming {
    api_version: String,
    kind: String,
    request: Option<Request>,
}

/// What the API server asks about.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    uid: String,
    operation: String,
    #[serde(default)]
    sub_resource: String,
    kind: GroupVersionKind,
    #[serde(default)]
    object: Json,
    #[serde(default)]
    old_object: Json,
}

#[derive(Debug, Deserialize)]
struct GroupVersionKind {
    group: String,
    kind: String,
}

/// What is answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Review {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

/// The decision.
#[derive(Debug, Serialize)]
pub struct Response {
    uid: String,
    /// Whether the object may be written.
    pub allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    /// What the user is told in any case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

/// Reads a request.
///
/// # Errors
/// When it is none that can be answered.
pub fn read(body: &[u8]) -> Result<Request, ReviewError> {
    let incoming: Incoming = serde_json::from_slice(body)?;
    if incoming.api_version != API_VERSION || incoming.kind != KIND {
        return Err(ReviewError::Version);
    }
    incoming
        .request
        .filter(|request| request.uid.len() <= MAX_UID)
        .ok_or(ReviewError::Version)
}

/// Decides on a request.
pub fn decide(request: Request, settings: &Settings) -> Review {
    let (errors, warnings) = match used(&request.kind) {
        _ if !is_new(&request) => Default::default(),
        Some(kind) => judge(kind, request.object, settings),
        None => (Vec::new(), note(&request.object)),
    };
    Review {
        api_version: API_VERSION,
        kind: KIND,
        response: Response {
            uid: request.uid,
            allowed: errors.is_empty(),
            status: (!errors.is_empty()).then(|| refusal(&errors)),
            warnings: warnings.iter().take(MAX_WARNINGS).map(warning).collect(),
        },
    }
}

impl Review {
    /// The decision in it.
    pub fn response(&self) -> &Response {
        &self.response
    }
}

/// Whether there is anything to examine: the object is new or was changed by a user.
fn is_new(request: &Request) -> bool {
    let is_written = matches!(request.operation.as_str(), "CREATE" | "UPDATE");
    let is_whole = request.sub_resource.is_empty();
    let is_leaving = !request.object["metadata"]["deletionTimestamp"].is_null();
    is_written && is_whole && !is_leaving && !is_unchanged(request)
}

/// The kind of the object, if objects of it are used.
fn used(wanted: &GroupVersionKind) -> Option<Kind> {
    let mut kinds = Kind::ALL.iter().copied();
    kinds.find(|kind| kind.group() == wanted.group && kind.name() == wanted.kind)
}

/// Whether an update leaves alone what users write, so that nobody is kept from writing a status or taking a finalizer
/// off an object that was bad before.
fn is_unchanged(request: &Request) -> bool {
    let fields = ["/spec", "/metadata/labels", "/metadata/annotations"];
    let is_same = |field: &&str| request.object.pointer(field) == request.old_object.pointer(field);
    request.old_object.is_object() && fields.iter().all(is_same)
}

/// What refuses the object, and what is only told.
fn judge(kind: Kind, mut object: Json, settings: &Settings) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
    prepare(&mut object);
    let decoded = decode(kind, &object);
    let read = decoded.diagnostics();
    let translated = match decoded.outcome {
        Outcome::Good(_) => translate(decoded, settings),
        Outcome::Bad(_) | Outcome::Noted => Vec::new(),
    };
    let (errors, mut warnings): (Vec<_>, Vec<_>) = read
        .into_iter()
        .partition(|finding| finding.severity == Severity::Error);
    warnings.extend(translated);
    warnings.retain(|finding| finding.severity != Severity::Info);
    (errors, warnings)
}

/// What the writer of an object of another kind is to know: above all that it has no effect.
fn note(object: &Json) -> Vec<Diagnostic> {
    // One that is too large to be read as a person wrote it has no effect either.
    let Ok(value) = Value::from_json(object) else {
        return Vec::new();
    };
    let decoded = resources::decode(&value, &Origin::Cluster, &Strings::default());
    match decoded.outcome {
        Outcome::Noted => decoded.diagnostics(),
        // A kind that is yet to be learnt of is for the API server to judge.
        Outcome::Good(_) | Outcome::Bad(_) => Vec::new(),
    }
}

/// Takes out the bookkeeping, and gives an object a name that the API server has yet to make up.
fn prepare(object: &mut Json) {
    let Some(metadata) = object.get_mut("metadata").and_then(Json::as_object_mut) else {
        return;
    };
    metadata.remove("managedFields");
    if let (None, Some(prefix)) = (metadata.get("name"), metadata.get("generateName")) {
        let name = format!("{}x", prefix.as_str().unwrap_or_default());
        metadata.insert("name".to_owned(), Json::String(name));
    }
}

/// Reads the object as a person wrote it. One that is too large for that is read as an API server's, which tells so.
fn decode(kind: Kind, object: &Json) -> Decoded {
    let strings = Strings::default();
    match Value::from_json(object) {
        Ok(value) => resources::decode(&value, &Origin::Cluster, &strings),
        Err(_) => resources::decode_json(kind, object, &strings),
    }
}

/// What translation finds in the object alone. Labels are left out: they name objects that are not here.
fn translate(decoded: Decoded, settings: &Settings) -> Vec<Diagnostic> {
    let before = decoded.diagnostics();
    let mut engine = Engine::new(settings.clone());
    engine.apply(Change::Applied(decoded));
    engine.commit();
    let is_own = |finding: &&Diagnostic| !finding.field.to_string().starts_with("metadata.labels");
    let found = engine.diagnostics().filter(is_own);
    found.filter(|it| !before.contains(it)).cloned().collect()
}

fn refusal(errors: &[Diagnostic]) -> Status {
    let reasons: Vec<String> = errors
        .iter()
        .take(MAX_REASONS)
        .map(ToString::to_string)
        .collect();
    Status {
        code: 422,
        reason: "Invalid",
        message: reasons.join("\n"),
    }
}

fn warning(finding: &Diagnostic) -> String {
    let text = finding.to_string();
    if text.chars().count() <= MAX_WARNING {
        return text;
    }
    let mut short: String = text.chars().take(MAX_WARNING - 1).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests;
