//! `undermesh token`: lets machines join.
use std::io::{self, Write as _};

use serde_json::json;
use undermesh_kubernetes::connect::{self, ConnectError};
use undermesh_machine::{
    JoinToken,
    entry::Key,
    issue::{self, IssueError, Order},
    join::JoinError,
};

use crate::{
    command::{TokenArgs, TokenForm, TokenVerb, WithAccess},
    process::{self, ProcessError},
};

/// Threads of the runtime: one answer is waited for at a time.
const THREADS: usize = 1;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// What the token is made of.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// What was given makes a token that no machine would take.
    #[error("{0}; check --controller, --cluster-id and the group's network")]
    Unusable(JoinError),
    /// No JSON form.
    #[error("the token has no JSON form: {0}; check the headers of the group's probe")]
    Form(#[from] serde_json::Error),
    /// Standard output.
    #[error("cannot write the token: {0}")]
    Output(#[from] io::Error),
    /// The runtime.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Runs a verb to its end.
///
/// # Errors
/// When it fails; the error says what to do.
pub fn run(verb: TokenVerb) -> Result<(), TokenError> {
    let TokenVerb::Create(options) = verb;
    process::runtime("token", THREADS)?.block_on(create(options))
}

async fn create(options: WithAccess<TokenArgs>) -> Result<(), TokenError> {
    let WithAccess { args, cluster } = options;
    let client = connect::connect_checked(&cluster.access()).await?;
    let order = Order {
        group: Key {
            namespace: args.namespace,
            name: args.group,
        },
        lifetime: args.ttl,
        controller: args.controller,
        system: args.system_namespace,
        cluster: args.cluster_id,
        trust_domain: args.trust_domain,
    };
    let token = issue::create(client, &order).await?;
    let text = token.encode()?;
    text.parse::<JoinToken>().map_err(TokenError::Unusable)?;
    let mut out = io::stdout();
    match args.output {
        TokenForm::Text => writeln!(out, "{}", &*text)?,
        TokenForm::Json => writeln!(out, "{}", described(&token, &text))?,
    }
    eprintln!(
        "{token}. It can be used until {}; keep it secret.",
        token.expiry()
    );
    Ok(())
}

fn described(token: &JoinToken, text: &str) -> serde_json::Value {
    json!({
        "token": text,
        "expires": token.expiry(),
        "controller": token.controller,
        "namespace": token.identity.namespace,
        "group": token.group,
        "identity": token.identity.to_string(),
    })
}
