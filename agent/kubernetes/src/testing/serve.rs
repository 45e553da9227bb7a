//! The answers to requests.
use std::{convert::Infallible, io, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Failure, Shared,
    apply::{self, Writer},
    kinds::KindInfo,
    record::{Part, key_of},
    request::{Address, Query, Target},
    status::Status,
    view::View,
    watch_stream::Watch,
};

/// Largest body that is read, in bytes; the API server's bound.
const MAX_BODY_BYTES: usize = 3 << 20;

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Result<Response<Body>, Status>;

/// Answers one request; an error closes the connection.
pub(super) async fn serve(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let line = format!("{} {}", request.method(), request.uri());
    shared
        .requests
        .send_modify(|lines| lines.push(line.clone()));
    match shared.rules.meet(&line) {
        None => {}
        Some(Failure::Refuse(code)) => return Ok(refusal(&Status::injected(code))),
        Some(Failure::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
        Some(Failure::Hang) => std::future::pending().await,
        Some(Failure::Delay(time)) => tokio::time::sleep(time).await,
    }
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Ok(refusal(&Status::bad_request(error.to_string()))),
    };
    let call = Call {
        query: Query::parse(parts.uri.query().unwrap_or_default()),
        accept: text(&parts.headers, header::ACCEPT),
        content: text(&parts.headers, header::CONTENT_TYPE),
        agent: text(&parts.headers, header::USER_AGENT),
        method: parts.method,
        body,
        shared,
    };
    let answer = call.answer(parts.uri.path());
    Ok(answer.unwrap_or_else(|status| refusal(&status)))
}

fn text(headers: &http::HeaderMap, name: header::HeaderName) -> String {
    let value = headers.get(name).and_then(|it| it.to_str().ok());
    value.unwrap_or_default().to_owned()
}

fn refusal(status: &Status) -> Response<Body> {
    let mut response = reply(status.code, &status.to_json());
    if let Some(seconds) = status.retry_after {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn reply(code: StatusCode, value: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(value).expect("JSON");
    let body = Full::new(Bytes::from(text)).map_err(|error: Infallible| match error {});
    respond(code, body.boxed_unsync())
}

fn respond(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

/// A request that was read whole.
struct Call {
    shared: Arc<Shared>,
    method: Method,
    query: Query,
    accept: String,
    content: String,
    agent: String,
    body: Bytes,
}

impl Call {
    fn answer(&self, path: &str) -> Answer {
        let target = Target::parse(path).ok_or_else(Status::no_such_resource)?;
        let value = match target {
            Target::Objects(address) => return self.objects(&address),
            Target::Version => json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0" }),
            Target::Health => json!("ok"),
            Target::CoreVersions => json!({ "kind": "APIVersions", "versions": ["v1"] }),
            Target::Groups => self.groups(),
            Target::Group(group) => self.group(&group).ok_or_else(Status::no_such_resource)?,
            Target::Resources { group, version } => self.resources(&group, &version)?,
        };
        Ok(reply(StatusCode::OK, &value))
    }

    fn groups(&self) -> Value {
        let mut names: Vec<String> = self
            .shared
            .store()
            .kinds()
            .iter()
            .map(|it| it.group.clone())
            .collect();
        names.sort();
        names.dedup();
        let groups: Vec<Value> = names.iter().filter_map(|name| self.group(name)).collect();
        json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
    }

    fn group(&self, name: &str) -> Option<Value> {
        let store = self.shared.store();
        let kinds = store
            .kinds()
            .iter()
            .filter(|it| !name.is_empty() && it.group == name);
        let mut versions: Vec<&String> = Vec::new();
        for version in kinds.flat_map(|kind| &kind.versions) {
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        let listed: Vec<Value> = versions
            .iter()
            .map(|it| json!({ "groupVersion": format!("{name}/{it}"), "version": it }))
            .collect();
        let preferred = listed.first()?;
        Some(json!({
            "kind": "APIGroup",
            "apiVersion": "v1",
            "name": name,
            "versions": listed,
            "preferredVersion": preferred,
        }))
    }

    fn resources(&self, group: &str, version: &str) -> Result<Value, Status> {
        let store = self.shared.store();
        let kinds = store.kinds().iter();
        let served: Vec<Value> = kinds
            .filter(|kind| kind.group == group && kind.versions.iter().any(|it| it == version))
            .flat_map(|kind| {
                let entry = |name: String| {
                    json!({
                        "name": name,
                        "singularName": kind.kind.to_lowercase(),
                        "namespaced": kind.namespaced,
                        "kind": kind.kind,
                        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
                    })
                };
                let status = kind
                    .status
                    .then(|| entry(format!("{}/status", kind.plural)));
                std::iter::once(entry(kind.plural.clone())).chain(status)
            })
            .collect();
        if served.is_empty() {
            return Err(Status::no_such_resource());
        }
        Ok(json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": super::kinds::joined(group, version),
            "resources": served,
        }))
    }

    fn objects(&self, address: &Address) -> Answer {
        if let Some(answer) = self.reviews(address) {
            return answer;
        }
        let found =
            self.shared
                .store()
                .kind_of_path(&address.group, &address.version, &address.plural);
        let kind = found.ok_or_else(Status::no_such_resource)?;
        if address.namespace.is_some() && !kind.namespaced {
            return Err(Status::no_such_resource());
        }
        let view = View::new(&kind, &address.version, &self.accept);
        let Some(name) = &address.name else {
            return match self.method {
                Method::GET if self.query.is_set("watch") => self.watch(kind, address, view),
                Method::GET => self.list(&kind, address, &view),
                Method::POST => self.create(&kind, address, &view),
                _ => Err(Status::method_not_allowed()),
            };
        };
        self.object(&kind, address, name, &view)
    }

    /// Requests that keep no object.
    fn reviews(&self, address: &Address) -> Option<Answer> {
        let created = |value: &Value| Ok(reply(StatusCode::CREATED, value));
        let answer = match (address.group.as_str(), address.plural.as_str()) {
            ("authentication.k8s.io", "tokenreviews") => self.json().and_then(|review| {
                let reviewed = self.shared.tokens().review(review);
                created(&reviewed)
            }),
            (
                "authorization.k8s.io",
                "subjectaccessreviews" | "selfsubjectaccessreviews" | "localsubjectaccessreviews",
            ) => self.json().and_then(|mut review| {
                review["status"] = json!({ "allowed": true });
                created(&review)
            }),
            ("", "serviceaccounts") if address.subresource.as_deref() == Some("token") => {
                self.json().and_then(|request| {
                    let store = self.shared.store();
                    let namespace = address.namespace.as_deref().unwrap_or_default();
                    let account = address.name.as_deref().unwrap_or_default();
                    let mut tokens = self.shared.tokens();
                    let granted = tokens.request(&store, namespace, account, request)?;
                    created(&granted)
                })
            }
            _ => return None,
        };
        Some(match self.method {
            Method::POST => answer,
            _ => Err(Status::method_not_allowed()),
        })
    }

    fn watch(&self, kind: Arc<KindInfo>, address: &Address, view: View) -> Answer {
        let namespace = address.namespace.clone();
        let watch = Watch::open(&self.shared, kind, namespace, &self.query, view)?;
        let body = StreamBody::new(watch.frames()).boxed_unsync();
        Ok(respond(StatusCode::OK, body))
    }

    fn list(&self, kind: &KindInfo, address: &Address, view: &View) -> Answer {
        let mut store = self.shared.store();
        let limit = self.query.number("limit")?.unwrap_or(0) as usize;
        let (revision, mut rest) = match self.query.number("continue")? {
            Some(token) => store.listing(token)?,
            None => {
                let asked = self.query.number("resourceVersion")?.unwrap_or(0);
                let current = store.revision();
                if asked > current {
                    return Err(Status::too_large_version(asked, current));
                }
                if self.query.text("resourceVersionMatch") == "Exact" && asked < current {
                    return Err(Status::expired(asked, current));
                }
                let selector = self.query.selector()?;
                let mut all = store.list(kind, address.namespace.as_deref());
                all.retain(|object| selector.matches(object));
                (current, all)
            }
        };
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if limit > 0 && rest.len() > limit {
            let later = rest.split_off(limit);
            metadata["remainingItemCount"] = json!(later.len());
            let token = store.keep_listing(revision, later);
            metadata["continue"] = json!(token.to_string());
        }
        // A long answer must not keep others from the store.
        drop(store);
        let items = rest.iter().map(|object| &**object);
        Ok(reply(StatusCode::OK, &view.list(kind, metadata, items)))
    }

    fn create(&self, kind: &KindInfo, address: &Address, view: &View) -> Answer {
        let object = self.json()?;
        let namespace = address.namespace.as_deref().unwrap_or_default();
        let stated = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or(namespace);
        if kind.namespaced && stated != namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let writer = self.writer("Update", "");
        let made = self
            .shared
            .change(|store| store.create(kind, namespace, object, &writer))?;
        Ok(reply(StatusCode::CREATED, &view.object(&made)))
    }

    fn object(&self, kind: &KindInfo, address: &Address, name: &str, view: &View) -> Answer {
        let (part, subresource) = match address.subresource.as_deref() {
            None => (Part::Main, ""),
            Some("status") if kind.status => (Part::Status, "status"),
            Some(_) => return Err(Status::no_such_resource()),
        };
        let namespace = address.namespace.as_deref().unwrap_or_default();
        let key = key_of(kind, namespace, name);
        let answer = |object: &Value| Ok(reply(StatusCode::OK, &view.object(object)));
        match self.method {
            Method::GET => {
                let found = self.shared.store().get(&key);
                answer(&*found.ok_or_else(|| Status::not_found(&kind.qualified(), name))?)
            }
            Method::PUT => {
                let object = self.json()?;
                let writer = self.writer("Update", subresource);
                let written = self
                    .shared
                    .change(|store| store.replace(kind, &key, object, part, &writer))?;
                answer(&written)
            }
            Method::DELETE if part == Part::Main => {
                let options = if self.body.is_empty() {
                    json!({})
                } else {
                    self.json()?
                };
                let last = self
                    .shared
                    .change(|store| store.delete(kind, &key, &options))?;
                answer(&last)
            }
            Method::PATCH if self.content.starts_with("application/apply-patch+yaml") => {
                if self.query.text("fieldManager").is_empty() {
                    let message = "fieldManager: Required value: is required for apply patch";
                    return Err(Status::invalid(message.to_owned()));
                }
                let applied = self.json()?;
                let writer = self.writer("Apply", subresource);
                let force = self.query.is_set("force");
                let (object, made) = self
                    .shared
                    .change(|store| store.apply(kind, &key, applied, part, &writer, force))?;
                let code = if made {
                    StatusCode::CREATED
                } else {
                    StatusCode::OK
                };
                Ok(reply(code, &view.object(&object)))
            }
            Method::PATCH if self.content.starts_with("application/merge-patch+json") => {
                let patch = self.json()?;
                let writer = self.writer("Update", subresource);
                let patched = self.shared.change(|store| {
                    let old = store.get(&key);
                    let old = old.ok_or_else(|| Status::not_found(&kind.qualified(), name))?;
                    let mut object = (*old).clone();
                    apply::merge(&mut object, patch);
                    store.replace(kind, &key, object, part, &writer)
                })?;
                answer(&patched)
            }
            Method::PATCH => Err(Status::unsupported_media_type(&self.content)),
            _ => Err(Status::method_not_allowed()),
        }
    }

    fn json(&self) -> Result<Value, Status> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Status::bad_request(format!("the body is no JSON: {error}")))
    }

    fn writer(&self, operation: &'static str, subresource: &'static str) -> Writer {
        let named = self.query.text("fieldManager");
        let manager = if named.is_empty() {
            self.agent.split('/').next().unwrap_or_default()
        } else {
            named
        };
        Writer {
            manager: manager.to_owned(),
            operation,
            subresource,
        }
    }
}
