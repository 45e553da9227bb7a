//! A Kubernetes API as a user reaches it, by HTTP: objects applied, patched, read and deleted.

use serde_json::{Value, json};

use crate::testbed::Outside;
use crate::{Context, Result};

/// Who owns the fields that a test applies.
const FIELD_MANAGER: &str = "testbed";

/// An API server and how to reach it.
#[derive(Clone, Debug)]
pub struct Api {
    /// Where requests are sent from.
    pub host: Outside,
    /// Its URL.
    pub url: String,
    /// Arguments of curl that prove the caller and check the server.
    pub credentials: Vec<String>,
}

/// A kind as its path names it.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    prefix: &'static str,
    plural: &'static str,
    namespaced: bool,
}

const fn kind(
    name: &'static str,
    prefix: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Kind {
    Kind {
        name,
        prefix,
        plural,
        namespaced,
    }
}

const KINDS: [Kind; 19] = [
    kind("Namespace", "api/v1", "namespaces", false),
    kind("Node", "api/v1", "nodes", false),
    kind("Pod", "api/v1", "pods", true),
    kind("Service", "api/v1", "services", true),
    kind("ServiceAccount", "api/v1", "serviceaccounts", true),
    kind("ConfigMap", "api/v1", "configmaps", true),
    kind("Secret", "api/v1", "secrets", true),
    kind("DaemonSet", "apis/apps/v1", "daemonsets", true),
    kind("Lease", "apis/coordination.k8s.io/v1", "leases", true),
    kind(
        "EndpointSlice",
        "apis/discovery.k8s.io/v1",
        "endpointslices",
        true,
    ),
    kind(
        "CustomResourceDefinition",
        "apis/apiextensions.k8s.io/v1",
        "customresourcedefinitions",
        false,
    ),
    kind(
        "PeerAuthentication",
        "apis/security.istio.io/v1",
        "peerauthentications",
        true,
    ),
    kind(
        "AuthorizationPolicy",
        "apis/security.istio.io/v1",
        "authorizationpolicies",
        true,
    ),
    kind(
        "ServiceEntry",
        "apis/networking.istio.io/v1",
        "serviceentries",
        true,
    ),
    kind(
        "WorkloadEntry",
        "apis/networking.istio.io/v1",
        "workloadentries",
        true,
    ),
    kind(
        "WorkloadGroup",
        "apis/networking.istio.io/v1",
        "workloadgroups",
        true,
    ),
    kind(
        "VirtualService",
        "apis/networking.istio.io/v1",
        "virtualservices",
        true,
    ),
    kind(
        "DestinationRule",
        "apis/networking.istio.io/v1",
        "destinationrules",
        true,
    ),
    kind("Gateway", "apis/networking.istio.io/v1", "gateways", true),
];

impl Api {
    /// Applies an object and, where it has one, its status; returns what the server made of it.
    ///
    /// # Errors
    /// When the server refuses; its own words are in the error.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let path = path_of(object)?;
        let mut main = object.clone();
        let status = main.as_object_mut().and_then(|it| it.remove("status"));
        let applied = self.patch_as("application/apply-patch+yaml", &path, &main)?;
        let Some(status) = status else {
            return Ok(applied);
        };
        let body = json!({ "status": status });
        self.patch_as(
            "application/merge-patch+json",
            &format!("{path}/status"),
            &body,
        )
    }

    /// Changes an object by a merge patch (RFC 7386).
    ///
    /// # Errors
    /// When the server refuses.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Result<Value> {
        let path = path(kind, namespace, name)?;
        self.patch_as("application/merge-patch+json", &path, patch)
    }

    /// Changes the status of an object by a merge patch.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn patch_status(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        status: &Value,
    ) -> Result<Value> {
        let path = format!("{}/status", path(kind, namespace, name)?);
        let patch = json!({ "status": status });
        self.patch_as("application/merge-patch+json", &path, &patch)
    }

    /// Reads an object.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        self.json("GET", &path(kind, namespace, name)?, None)
    }

    /// Deletes an object at once.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let now = ("application/json", json!({ "gracePeriodSeconds": 0 }));
        self.json("DELETE", &path(kind, namespace, name)?, Some(now))
            .map(drop)
    }

    /// A token for a service account, bound to a pod of it.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn token(
        &self,
        namespace: &str,
        account: &str,
        pod: &Value,
        seconds: u32,
    ) -> Result<String> {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": ["istio-ca"],
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": pod["metadata"]["name"],
                    "uid": pod["metadata"]["uid"],
                },
            },
        });
        let path = format!(
            "{}/token",
            self::path("ServiceAccount", namespace, account)?
        );
        let answer = self.json("POST", &path, Some(("application/json", request)))?;
        let token = answer["status"]["token"].as_str();
        token
            .map(str::to_owned)
            .context(|| format!("find the token in {answer}"))
    }

    fn patch_as(&self, content: &str, path: &str, body: &Value) -> Result<Value> {
        let path = format!("{path}?fieldManager={FIELD_MANAGER}");
        let path = if content.contains("apply") {
            format!("{path}&force=true")
        } else {
            path
        };
        self.json("PATCH", &path, Some((content, body.clone())))
    }

    fn json(&self, method: &str, path: &str, body: Option<(&str, Value)>) -> Result<Value> {
        let body = body.map(|(content, body)| (content.to_owned(), body.to_string()));
        let text = self.request(method, path, body.as_ref())?;
        serde_json::from_str(&text)
            .context(|| format!("read the answer to {method} {path}: {text}"))
    }

    /// Sends a request and returns the body of the answer.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&(String, String)>,
    ) -> Result<String> {
        let fixed = [
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--max-time",
            "20",
            "--request",
            method,
        ];
        let mut arguments: Vec<String> = fixed.map(str::to_owned).into();
        arguments.extend(self.credentials.iter().cloned());
        if let Some((content, text)) = body {
            arguments.extend(["--header".to_owned(), format!("Content-Type: {content}")]);
            arguments.extend(["--data-binary".to_owned(), text.clone()]);
        }
        arguments.push(format!("{}/{path}", self.url));
        self.host.place.output("curl", arguments)?.success()
    }
}

/// The path of an object, in the version that it is written in.
fn path_of(object: &Value) -> Result<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let prefix = match version.contains('/') {
        true => format!("apis/{version}"),
        false => format!("api/{version}"),
    };
    let (namespace, name) = (
        &object["metadata"]["namespace"],
        &object["metadata"]["name"],
    );
    let kind = known(&text(&object["kind"]))?;
    Ok(joined(kind, &prefix, &text(namespace), &text(name)))
}

fn path(kind: &str, namespace: &str, name: &str) -> Result<String> {
    let kind = known(kind)?;
    Ok(joined(kind, kind.prefix, namespace, name))
}

fn known(kind: &str) -> Result<&'static Kind> {
    let known = KINDS.iter().find(|known| known.name == kind);
    known.context(|| format!("find the path of kind {kind}"))
}

fn joined(kind: &Kind, prefix: &str, namespace: &str, name: &str) -> String {
    let plural = kind.plural;
    if kind.namespaced {
        format!("{prefix}/namespaces/{namespace}/{plural}/{name}")
    } else {
        format!("{prefix}/{plural}/{name}")
    }
}
