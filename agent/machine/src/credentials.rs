//! What a machine proves itself with: the join token's, until it has its first certificate, and then that.
use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use undermesh_identity::{CertificateHandle, Credentials, NoCredentials, Presented, Proof, Secret};

/// A machine's credentials. The service account's token is forgotten at the first certificate; nothing is ever on disk.
pub struct JoinCredentials {
    roots: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Secret>,
    certificate: Option<CertificateHandle>,
}

impl JoinCredentials {
    /// Begins with a token, and with the roots that came with it.
    pub fn new(token: Secret, roots: String) -> Self {
        Self {
            roots,
            state: Mutex::new(State {
                token: Some(token),
                certificate: None,
            }),
        }
    }

    /// Presents the certificate of `handle` as soon as, and whenever, it is valid.
    pub fn follow(&self, handle: CertificateHandle) {
        self.lock().certificate = Some(handle);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for JoinCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinCredentials").finish_non_exhaustive()
    }
}

impl Credentials for JoinCredentials {
    fn present(&self) -> Result<Presented, NoCredentials> {
        let mut state = self.lock();
        let certificate = state.certificate.as_ref().map(CertificateHandle::load);
        if let Some(Ok(certificate)) = certificate {
            state.token = None;
            return Ok(certificate.presented());
        }
        if let Some(token) = &state.token {
            return Ok(Presented {
                proof: Proof::Token(token.clone()),
                roots: self.roots.clone(),
            });
        }
        Err(NoCredentials(
            "the join token was used and the certificate that it brought is no longer valid; start the agent anew with another one, made by 'undermesh token create'"
                .to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tokio::runtime::Handle;
    use undermesh_identity::testing::{ManualClock, TestMesh};

    use super::*;

    #[tokio::test]
    async fn the_token_serves_until_there_is_a_certificate_and_never_again() {
        let credentials = JoinCredentials::new(Secret::new("t".to_owned()), "roots".to_owned());
        let is_token = |presented: &Presented| matches!(presented.proof, Proof::Token(_));
        assert!(is_token(&credentials.present().unwrap()));

        let clock = ManualClock::new(SystemTime::now());
        let mesh = TestMesh::at("cluster.local", clock.clone());
        let identity = "spiffe://cluster.local/ns/shop/sa/vm".parse().unwrap();
        let handle = mesh.cache(Handle::current()).acquire(&identity);
        credentials.follow(handle.clone());
        handle.ready().await;
        let presented = credentials.present().unwrap();
        assert!(!is_token(&presented));
        assert!(presented.roots.contains("BEGIN CERTIFICATE"));

        // The task that would renew it sleeps by another clock.
        clock.advance(Duration::from_secs(7 * 24 * 3600));
        let error = credentials.present().unwrap_err().to_string();
        assert!(error.contains("undermesh token create"), "{error}");
    }
}
