//! The seam to whoever knows callers by their tokens: the API server's TokenReview, or the tokens of machines.
use futures::future::BoxFuture;

/// Who called, as its token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// The pod that the token is bound to; `None` for a token that is bound to none.
    pub pod: Option<BoundPod>,
}

/// The pod that a token is bound to (the extra fields `authentication.kubernetes.io/pod-name` and `pod-uid`
/// of a TokenReview).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Why a caller is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// The token proves nothing.
    #[error(
        "the token is not valid: {0}; call with a service account token for the audience istio-ca"
    )]
    Invalid(String),
    /// The token could not be checked.
    #[error("the token cannot be checked: {0}; try again")]
    Unavailable(String),
}

/// Knows callers by their tokens.
pub trait Authenticator: Send + Sync {
    /// Checks a bearer token. `cluster` is what the caller says of its cluster (the header `clusterid`),
    /// empty when it says nothing.
    ///
    /// # Errors
    /// When the token is not valid, or cannot be checked at present.
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        cluster: &'a str,
    ) -> BoxFuture<'a, Result<Caller, CallerError>>;
}
