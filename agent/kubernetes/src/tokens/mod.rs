//! Who called, by the API server's TokenReview.
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use undermesh_identity::{Authenticator, BoundPod, Caller, CallerError};

use crate::connect::chain;

mod cache;
#[cfg(test)]
mod tests;

use cache::Cache;

/// Longest token that is sent to the API server, in bytes; service account tokens have about 1 KiB.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// Longest wait for a review, with the wait for its turn.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Most characters of the API server's reason that are passed on.
const MAX_REASON_CHARS: usize = 200;

const USER_PREFIX: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// How tokens are reviewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReviewSettings {
    /// A token must be meant for one of these.
    pub audiences: Vec<String>,
    /// Most reviews at the same time.
    pub concurrency: usize,
    /// How long a positive review is good for. A token that is revoked stays good for as long.
    pub remember: Duration,
    /// Most positive reviews that are kept.
    pub remembered: usize,
}

impl Default for ReviewSettings {
    fn default() -> Self {
        Self {
            audiences: vec!["istio-ca".to_owned()],
            concurrency: 32,
            remember: Duration::from_secs(10),
            remembered: 4096,
        }
    }
}

/// Knows callers by TokenReview.
#[derive(Debug)]
pub struct TokenReviewer {
    api: Api<TokenReview>,
    settings: ReviewSettings,
    turns: Semaphore,
    cache: Cache,
}

impl TokenReviewer {
    /// A reviewer that asks this API server; it needs the right to create `tokenreviews`.
    pub fn new(client: Client, settings: ReviewSettings) -> Self {
        Self {
            api: Api::all(client),
            turns: Semaphore::new(settings.concurrency),
            cache: Cache::new(settings.remember, settings.remembered),
            settings,
        }
    }

    async fn known_or_reviewed(&self, token: &str) -> Result<Caller, CallerError> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            let reason = format!("it has {} bytes", token.len());
            return Err(CallerError::Invalid(reason));
        }
        // Callers with the same token wait for one review instead of asking for one each.
        let slot = self.cache.slot(token, Instant::now());
        let Some(slot) = slot else {
            return self.review(token).await;
        };
        let mut known = slot.lock().await;
        if let Some(caller) = known.caller(Instant::now()) {
            return Ok(caller.clone());
        }
        let asked = Instant::now();
        let outcome = self.review(token).await;
        match &outcome {
            Ok(caller) => known.remember(caller.clone(), asked + self.settings.remember),
            Err(_) => {
                drop(known);
                self.cache.forget(&slot);
            }
        }
        outcome
    }

    async fn review(&self, token: &str) -> Result<Caller, CallerError> {
        let asked = async {
            // The semaphore is never closed.
            let _turn = self.turns.acquire().await;
            let spec = TokenReviewSpec {
                audiences: Some(self.settings.audiences.clone()),
                token: Some(token.to_owned()),
            };
            let review = TokenReview {
                spec,
                ..TokenReview::default()
            };
            self.api.create(&PostParams::default(), &review).await
        };
        let unavailable = |reason: &str| CallerError::Unavailable(reason.to_owned());
        match timeout(REVIEW_TIMEOUT, asked).await {
            Err(_) => Err(unavailable("the API server does not answer")),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                Err(unavailable(&format!(
                    "the API server refuses the review ({}); allow us to create tokenreviews",
                    status.reason
                )))
            }
            Ok(Err(kube::Error::Api(status))) => Err(unavailable(&format!(
                "the API server answers {} {}",
                status.code, status.reason
            ))),
            Ok(Err(error)) => Err(unavailable(&chain(&error))),
            Ok(Ok(review)) => self.judge(review.status.unwrap_or_default()),
        }
    }

    fn judge(&self, status: TokenReviewStatus) -> Result<Caller, CallerError> {
        if status.authenticated != Some(true) {
            let reason = status
                .error
                .unwrap_or_else(|| "not authenticated".to_owned());
            let reason = reason.chars().take(MAX_REASON_CHARS).collect();
            return Err(CallerError::Invalid(reason));
        }
        // A server that does not know audiences answers with none: then the token is meant for the server itself.
        let meant = status.audiences.unwrap_or_default();
        if !meant.iter().any(|it| self.settings.audiences.contains(it)) {
            let reason = "it is not meant for this audience".to_owned();
            return Err(CallerError::Invalid(reason));
        }
        let user = status.user.unwrap_or_default();
        caller(&user).ok_or_else(|| {
            CallerError::Invalid("it is not the token of a service account".to_owned())
        })
    }
}

/// The service account that a user name stands for (`system:serviceaccount:NAMESPACE:NAME`).
fn caller(user: &UserInfo) -> Option<Caller> {
    let account = user.username.as_deref()?.strip_prefix(USER_PREFIX)?;
    let (namespace, service_account) = account.split_once(':')?;
    let valid = |text: &str| !text.is_empty() && !text.contains([':', '/']);
    if !valid(namespace) || !valid(service_account) {
        return None;
    }
    let extra = |name: &str| match user.extra.as_ref()?.get(name)?.as_slice() {
        [one] if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    let pod = match (extra(POD_NAME), extra(POD_UID)) {
        (Some(name), Some(uid)) => Some(BoundPod { name, uid }),
        _ => None,
    };
    Some(Caller {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod,
    })
}

impl Authenticator for TokenReviewer {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        _cluster: &'a str,
    ) -> BoxFuture<'a, Result<Caller, CallerError>> {
        Box::pin(self.known_or_reviewed(token))
    }
}
