//! The join token: all that a machine must know to join, in one opaque text.
//!
//! It is versioned JSON in base64url (RFC 4648, section 5, without padding). It holds a service account's token, so it is
//! a secret until that expires.
use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use undermesh_identity::{Secret, certificate};
use undermesh_model::{Identity, TrustDomain};
use zeroize::{Zeroize, Zeroizing};

use crate::{names::is_subdomain, probe::Probe};

/// The version that is written and read.
pub const VERSION: u32 = 1;
/// Longest join token, in bytes.
pub const MAX_BYTES: usize = 256 * 1024;
/// Longest token of a service account, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Longest name of a network, a cluster or a controller, in bytes.
pub const MAX_NAME_BYTES: usize = 253;

/// What a machine joins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Where the controller is reached: `https://host:port`.
    pub controller: String,
    /// The name that its certificate must hold.
    pub controller_name: String,
    /// The roots that vouch for it, as PEM.
    pub roots: String,
    /// The token of the machine's service account.
    pub token: Secret,
    /// When that token ends.
    pub expires: OffsetDateTime,
    /// Name of the WorkloadGroup, in the namespace of `identity`.
    pub group: String,
    /// Who the machine is.
    pub identity: Identity,
    /// Name of the cluster.
    pub cluster: String,
    /// The network that the machine is on; empty is the default one.
    pub network: String,
    /// How its application is asked whether it is well.
    pub probe: Option<Probe>,
}

/// Why a text is no join token. None of these shows what the text holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It is too long.
    #[error(
        "the join token is longer than {MAX_BYTES} bytes; give the output of 'undermesh token create' alone"
    )]
    Length,
    /// It is something else, or a part of one.
    #[error("this is no join token ({0}); give the whole output of 'undermesh token create'")]
    Form(&'static str),
    /// It was made by another version.
    #[error(
        "the join token is of version {0}, this agent reads {VERSION}; make it with the undermesh command of the agent's version"
    )]
    Version(u32),
    /// A part of it cannot be used.
    #[error("the join token holds no usable {0}; make another one")]
    Part(&'static str),
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fields {
    version: u32,
    controller: String,
    controller_name: String,
    roots: String,
    token: String,
    #[serde(with = "time::serde::rfc3339")]
    expires: OffsetDateTime,
    namespace: String,
    group: String,
    service_account: String,
    trust_domain: String,
    cluster: String,
    network: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    probe: Option<Probe>,
}

impl Drop for Fields {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl JoinToken {
    /// The token as text.
    ///
    /// # Errors
    /// When it has no JSON form, which a probe with a header that is no text makes it.
    pub fn encode(&self) -> Result<Zeroizing<String>, serde_json::Error> {
        let fields = Fields {
            version: VERSION,
            controller: self.controller.clone(),
            controller_name: self.controller_name.clone(),
            roots: self.roots.clone(),
            token: self.token.expose().to_owned(),
            expires: self.expires,
            namespace: self.identity.namespace.to_string(),
            group: self.group.clone(),
            service_account: self.identity.service_account.to_string(),
            trust_domain: self.identity.trust_domain.to_string(),
            cluster: self.cluster.clone(),
            network: self.network.clone(),
            probe: self.probe.clone(),
        };
        let json = Zeroizing::new(serde_json::to_vec(&fields)?);
        Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(&*json)))
    }

    /// Whether the service account's token has ended.
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expires <= now
    }

    /// When the service account's token ends, as RFC 3339 writes it.
    pub fn expiry(&self) -> String {
        self.expires.format(&Rfc3339).unwrap_or_default()
    }
}

impl FromStr for JoinToken {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        if text.len() > MAX_BYTES {
            return Err(JoinError::Length);
        }
        let json = URL_SAFE_NO_PAD.decode(text.trim());
        let json = Zeroizing::new(json.map_err(|_| JoinError::Form("it is not base64url"))?);
        // Another version may have other fields.
        let versioned: Versioned =
            serde_json::from_slice(&json).map_err(|_| JoinError::Form("it holds no version"))?;
        if versioned.version != VERSION {
            return Err(JoinError::Version(versioned.version));
        }
        let fields: Fields = serde_json::from_slice(&json)
            .map_err(|_| JoinError::Form("its fields are not those of its version"))?;
        Self::checked(&fields)
    }
}

impl JoinToken {
    fn checked(fields: &Fields) -> Result<Self, JoinError> {
        let require = |holds: bool, what| holds.then_some(()).ok_or(JoinError::Part(what));
        let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let is_short = |text: &str| text.len() <= MAX_NAME_BYTES && is_visible(text);
        let uri: Option<http::Uri> = fields.controller.parse().ok();
        let uri = uri.filter(|uri| uri.scheme_str() == Some("https") && uri.port().is_some());
        require(uri.is_some(), "address of a controller")?;
        require(
            is_short(&fields.controller_name) && !fields.controller_name.is_empty(),
            "name of a controller",
        )?;
        let roots = certificate::parse_pem(fields.roots.as_bytes());
        require(roots.is_ok_and(|roots| !roots.is_empty()), "roots")?;
        let token = &fields.token;
        let is_token = (1..=MAX_TOKEN_BYTES).contains(&token.len()) && is_visible(token);
        require(is_token, "service account token")?;
        require(is_subdomain(&fields.group), "group")?;
        require(is_short(&fields.cluster), "cluster")?;
        require(is_short(&fields.network), "network")?;
        let trust_domain: TrustDomain = fields
            .trust_domain
            .parse()
            .map_err(|_| JoinError::Part("trust domain"))?;
        let identity = Identity::new(trust_domain, &fields.namespace, &fields.service_account);
        Ok(Self {
            controller: fields.controller.clone(),
            controller_name: fields.controller_name.clone(),
            roots: fields.roots.clone(),
            token: Secret::new(token.clone()),
            expires: fields.expires,
            group: fields.group.clone(),
            identity: identity.map_err(|_| JoinError::Part("identity"))?,
            cluster: fields.cluster.clone(),
            network: fields.network.clone(),
            probe: fields.probe.clone(),
        })
    }
}

/// Whom it is for, and nothing of what is secret.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in group {}/{}, by {}",
            self.identity, self.identity.namespace, self.group, self.controller
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use time::macros::datetime;
    use undermesh_identity::testing::TestMesh;

    use super::*;

    pub(crate) fn sample() -> JoinToken {
        let mesh = TestMesh::new("cluster.local");
        JoinToken {
            controller: "https://192.0.2.1:15012".to_owned(),
            controller_name: "undermesh.istio-system.svc".to_owned(),
            roots: certificate::to_pem(mesh.roots()),
            token: Secret::new("header.claims.signature".to_owned()),
            expires: datetime!(2026-11-23 12:00 UTC),
            group: "vm".to_owned(),
            identity: "spiffe://cluster.local/ns/shop/sa/stock".parse().unwrap(),
            cluster: "Kubernetes".to_owned(),
            network: String::new(),
            probe: serde_json::from_value(json!({ "tcpSocket": { "port": 8080 } })).unwrap(),
        }
    }

    fn changed(change: impl FnOnce(&mut Value)) -> Result<JoinToken, JoinError> {
        let text = sample().encode().unwrap();
        let json = URL_SAFE_NO_PAD.decode(text.as_bytes()).unwrap();
        let mut json: Value = serde_json::from_slice(&json).unwrap();
        change(&mut json);
        URL_SAFE_NO_PAD.encode(json.to_string()).parse()
    }

    #[test]
    fn what_is_written_is_read() {
        let token = sample();
        let text = token.encode().unwrap();
        assert_eq!(format!(" {}\n", &*text).parse(), Ok(token.clone()));
        assert!(token.is_expired(datetime!(2026-11-23 12:00 UTC)));
        assert!(!token.is_expired(datetime!(2026-11-23 11:59 UTC)));
    }

    #[test]
    fn a_join_token_does_not_show_its_secret() {
        let token = sample();
        for shown in [format!("{token:?}"), token.to_string()] {
            assert!(!shown.contains("signature"), "{shown}");
        }
    }

    #[test]
    fn other_texts_are_refused_by_what_is_wrong() {
        assert!(matches!("%".parse::<JoinToken>(), Err(JoinError::Form(_))));
        assert!(matches!("".parse::<JoinToken>(), Err(JoinError::Form(_))));
        let long = "A".repeat(MAX_BYTES + 1);
        assert_eq!(long.parse::<JoinToken>(), Err(JoinError::Length));
        assert_eq!(
            changed(|it| it["version"] = json!(2)),
            Err(JoinError::Version(2))
        );
        for (field, value, part) in [
            (
                "controller",
                json!("http://192.0.2.1:15012"),
                "address of a controller",
            ),
            (
                "controller",
                json!("https://192.0.2.1"),
                "address of a controller",
            ),
            ("controllerName", json!(""), "name of a controller"),
            ("roots", json!("none"), "roots"),
            ("token", json!("a\r\nb"), "service account token"),
            (
                "token",
                json!("a".repeat(MAX_TOKEN_BYTES + 1)),
                "service account token",
            ),
            ("group", json!("../vm"), "group"),
            ("namespace", json!("a/b"), "identity"),
            ("trustDomain", json!("a/b"), "trust domain"),
            ("network", json!("a b"), "network"),
            ("cluster", json!("c".repeat(300)), "cluster"),
        ] {
            let error = changed(|it| it[field] = value.clone()).unwrap_err();
            assert_eq!(error, JoinError::Part(part), "{field}: {value}");
        }
        let unknown = changed(|it| it["more"] = json!(1)).unwrap_err();
        assert!(matches!(unknown, JoinError::Form(_)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[A-Za-z0-9_-]{0,200}") {
            prop_assert!(text.parse::<JoinToken>().is_err());
        }

        #[test]
        fn any_fields_are_read_or_refused(field in 0..12usize, text in "\\PC{0,40}") {
            let read = changed(|it| {
                let fields = it.as_object_mut().unwrap();
                let name = fields.keys().nth(field).unwrap().clone();
                fields.insert(name, json!(text));
            });
            if let Ok(token) = read {
                prop_assert!(token.controller.starts_with("https://"));
                prop_assert!(is_subdomain(&token.group));
                prop_assert!(!token.token.expose().contains(['\r', '\n', ' ']));
            }
        }
    }
}
