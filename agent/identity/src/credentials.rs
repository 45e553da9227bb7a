//! What a machine proves itself with to its control plane: a token until it has a certificate, then the certificate.
use std::fmt;

use zeroize::Zeroizing;

/// A text that must not be seen: wiped when dropped, hidden in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// One of the two ways to prove who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A bearer token.
    Token(Secret),
    /// A client certificate of the mesh.
    Certificate {
        /// The leaf and its intermediates, as PEM.
        chain: String,
        /// The leaf's private key, as PEM (PKCS #8).
        key: Secret,
    },
}

/// What a connection to the control plane is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// How the caller proves itself.
    pub proof: Proof,
    /// The roots that the control plane is judged by, as PEM.
    pub roots: String,
}

/// Why there is nothing to present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoCredentials(pub String);

/// Whoever holds what is presented; asked anew for each connection.
pub trait Credentials: fmt::Debug + Send + Sync {
    /// What to present now.
    ///
    /// # Errors
    /// When there is nothing that the control plane would take.
    fn present(&self) -> Result<Presented, NoCredentials>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let proof = Proof::Token(Secret::new("a.b.c".to_owned()));
        assert_eq!(format!("{proof:?}"), "Token(Secret(hidden))");
    }
}
