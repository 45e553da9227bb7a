//! Tokens of service accounts: made by TokenRequest or by the test, judged by TokenReview.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{record::Key, status::Status, store::Store, upkeep::written};

/// Shortest lifetime that is granted, as the API server has it.
const MIN_LIFETIME: u64 = 600;

/// Whom a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOwner {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// Audiences that the token is meant for.
    pub audiences: Vec<String>,
    /// Name and uid of the pod that it is bound to.
    pub pod: Option<(String, String)>,
}

impl TokenOwner {
    /// A token of a service account for the audience `istio-ca`, bound to no pod.
    pub fn new(namespace: &str, service_account: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            audiences: vec!["istio-ca".to_owned()],
            pod: None,
        }
    }

    /// The same, bound to a pod.
    #[must_use]
    pub fn bound_to(mut self, pod: &str, uid: &str) -> Self {
        self.pod = Some((pod.to_owned(), uid.to_owned()));
        self
    }

    /// The same for other audiences.
    #[must_use]
    pub fn for_audiences(mut self, audiences: &[&str]) -> Self {
        self.audiences = audiences.iter().map(|&it| it.to_owned()).collect();
        self
    }
}

#[derive(Debug)]
struct Token {
    owner: TokenOwner,
    expires: OffsetDateTime,
}

/// All tokens.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    tokens: BTreeMap<String, Token>,
    made: u64,
}

impl Tokens {
    /// Takes a token that a test made up.
    pub fn register(&mut self, text: &str, owner: TokenOwner, lifetime: Duration) {
        let expires = OffsetDateTime::now_utc() + lifetime;
        self.tokens
            .insert(text.to_owned(), Token { owner, expires });
    }

    /// Makes a token invalid.
    pub fn revoke(&mut self, text: &str) {
        self.tokens.remove(text);
    }

    /// `POST …/serviceaccounts/NAME/token`.
    pub fn request(
        &mut self,
        store: &Store,
        namespace: &str,
        account: &str,
        mut request: Value,
    ) -> Result<Value, Status> {
        let key = |plural: &str, name: &str| Key {
            group: String::new(),
            plural: plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        if store.get(&key("serviceaccounts", account)).is_none() {
            return Err(Status::not_found("serviceaccounts", account));
        }
        let spec = &request["spec"];
        let mut owner = TokenOwner::new(namespace, account);
        owner.audiences = texts(&spec["audiences"]);
        let bound = &spec["boundObjectRef"];
        if bound["kind"] == "Pod" {
            let name = bound["name"].as_str().unwrap_or_default();
            let pod = store.get(&key("pods", name));
            let pod = pod.ok_or_else(|| Status::not_found("pods", name))?;
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            owner = owner.bound_to(name, uid);
        }
        let seconds = spec["expirationSeconds"].as_u64().unwrap_or(3600);
        if seconds < MIN_LIFETIME {
            let message = "spec.expirationSeconds: may not specify a duration less than 10 minutes";
            return Err(Status::invalid(message.to_owned()));
        }
        self.made += 1;
        let text = format!("token-{}-{namespace}-{account}", self.made);
        self.register(&text, owner, Duration::from_secs(seconds));
        let expires = written(self.tokens[&text].expires);
        request["status"] = json!({ "token": text, "expirationTimestamp": expires });
        Ok(request)
    }

    /// `POST …/tokenreviews`.
    pub fn review(&self, mut review: Value) -> Value {
        let text = review["spec"]["token"].as_str().unwrap_or_default();
        let asked = texts(&review["spec"]["audiences"]);
        review["status"] = match self.judge(text, &asked) {
            Ok((owner, audiences)) => json!({
                "authenticated": true,
                "user": user(owner),
                "audiences": audiences,
            }),
            Err(error) => json!({ "authenticated": false, "user": {}, "error": error }),
        };
        review["spec"]["token"] = json!("");
        review
    }

    fn judge(&self, text: &str, asked: &[String]) -> Result<(&TokenOwner, Vec<String>), String> {
        let token = self.tokens.get(text).ok_or("invalid bearer token")?;
        if token.expires <= OffsetDateTime::now_utc() {
            return Err("service account token has expired".to_owned());
        }
        let meant: BTreeSet<&String> = token.owner.audiences.iter().collect();
        let both: Vec<String> = asked
            .iter()
            .filter(|it| meant.contains(it))
            .cloned()
            .collect();
        if both.is_empty() && !asked.is_empty() {
            let meant = &token.owner.audiences;
            return Err(format!(
                "token audiences {meant:?} is invalid for the target audiences {asked:?}"
            ));
        }
        Ok((&token.owner, both))
    }
}

fn user(owner: &TokenOwner) -> Value {
    let TokenOwner {
        namespace,
        service_account,
        ..
    } = owner;
    let mut user = json!({
        "username": format!("system:serviceaccount:{namespace}:{service_account}"),
        "uid": format!("uid-of-{namespace}-{service_account}"),
        "groups": [
            "system:serviceaccounts",
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated",
        ],
    });
    if let Some((name, uid)) = &owner.pod {
        user["extra"] = json!({
            "authentication.kubernetes.io/pod-name": [name],
            "authentication.kubernetes.io/pod-uid": [uid],
        });
    }
    user
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}
