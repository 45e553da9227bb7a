//! The seam to whoever knows callers: by their tokens, as the API server's TokenReview does, or by a certificate of the
//! mesh, as machines have one.
use std::future::ready;

use futures::future::BoxFuture;
use undermesh_model::Identity;

/// Whom the verified client certificate of a connection names: what the server of the connection puts into the
/// extensions of each of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate(pub Identity);

/// Who called, as its token or certificate proves.
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
    /// The token or certificate proves nothing.
    #[error(
        "the caller is not known: {0}; call with a service account token for the audience istio-ca"
    )]
    Invalid(String),
    /// The token or certificate could not be checked.
    #[error("the caller cannot be checked: {0}; try again")]
    Unavailable(String),
}

/// Knows callers.
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

    /// Checks somebody whose certificate the connection has verified. Unless it is told otherwise, a certificate
    /// proves nobody: those of pods are for tunnels.
    ///
    /// # Errors
    /// When the identity may not call by its certificate, or cannot be checked at present.
    fn certified<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Caller, CallerError>> {
        let reason = format!("the certificate of {identity} is not one to call with");
        Box::pin(ready(Err(CallerError::Invalid(reason))))
    }
}
