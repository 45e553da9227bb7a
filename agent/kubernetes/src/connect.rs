//! How to reach the API server: from inside a pod, or by a kubeconfig.
use std::path::PathBuf;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// Name that the API server's audit log shows.
const USER_AGENT: &str = concat!("undermesh/", env!("CARGO_PKG_VERSION"));

/// Where the credentials are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// The service account of this pod when there is one, else the kubeconfig of the user.
    #[default]
    Automatic,
    /// The service account of this pod.
    InCluster,
    /// A kubeconfig.
    Kubeconfig {
        /// The file; without it `KUBECONFIG`, then `~/.kube/config`.
        path: Option<PathBuf>,
        /// The context; without it the file's current one.
        context: Option<String>,
    },
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not in a pod, or one without a token.
    #[error(
        "no service account of a pod: {0}; run in a pod with automountServiceAccountToken, or name a kubeconfig"
    )]
    InCluster(String),
    /// The kubeconfig cannot be used.
    #[error(
        "cannot use the kubeconfig {file}: {error}; check KUBECONFIG, the file and its context"
    )]
    Kubeconfig {
        /// The file, or what stands for it.
        file: String,
        /// What is wrong.
        error: String,
    },
    /// Neither of both.
    #[error(
        "no access to a cluster: not in a pod ({in_cluster}), and no kubeconfig ({kubeconfig}); set KUBECONFIG"
    )]
    Neither {
        /// Why the pod's account cannot be used.
        in_cluster: String,
        /// Why the kubeconfig cannot be used.
        kubeconfig: String,
    },
    /// The certificates or the credentials do not make a client.
    #[error(
        "cannot set up the connection to {server}: {error}; check the certificates and credentials"
    )]
    Setup {
        /// The API server's URL.
        server: String,
        /// What is wrong.
        error: kube::Error,
    },
    /// The API server does not know us.
    #[error("the API server {server} refuses the credentials: {error}; renew them")]
    Refused {
        /// The API server's URL.
        server: String,
        /// What it said.
        error: String,
    },
    /// The API server does not answer.
    #[error(
        "the API server {server} does not answer: {error}; check the address, the network and the certificate authority"
    )]
    Unreachable {
        /// The API server's URL.
        server: String,
        /// What happened.
        error: String,
    },
}

/// A client, without a request yet.
///
/// # Errors
/// When there are no credentials, or they cannot be used.
pub async fn connect(access: &Access) -> Result<Client, ConnectError> {
    let (client, _) = prepare(access).await?;
    Ok(client)
}

/// A client whose credentials the API server accepted.
///
/// # Errors
/// As [`connect`], and when the API server does not answer or refuses.
pub async fn connect_checked(access: &Access) -> Result<Client, ConnectError> {
    let (client, server) = prepare(access).await?;
    match client.apiserver_version().await {
        Ok(_) => Ok(client),
        Err(kube::Error::Api(status)) => Err(ConnectError::Refused {
            server,
            error: status.message.clone(),
        }),
        Err(error) => Err(ConnectError::Unreachable {
            server,
            error: chain(&error),
        }),
    }
}

async fn prepare(access: &Access) -> Result<(Client, String), ConnectError> {
    let mut config = match access {
        Access::InCluster => in_cluster()?,
        Access::Kubeconfig { path, context } => kubeconfig(path.clone(), context.clone()).await?,
        Access::Automatic => automatic().await?,
    };
    // Callers have their own patience, and see at once what is wrong.
    config.default_retry = false;
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_static(USER_AGENT),
    ));
    let server = config.cluster_url.to_string();
    match Client::try_from(config) {
        Ok(client) => Ok((client, server)),
        Err(error) => Err(ConnectError::Setup { server, error }),
    }
}

fn in_cluster() -> Result<Config, ConnectError> {
    Config::incluster().map_err(|error| ConnectError::InCluster(chain(&error)))
}

async fn kubeconfig(
    path: Option<PathBuf>,
    context: Option<String>,
) -> Result<Config, ConnectError> {
    let file = path.as_ref().map_or_else(
        || "of the environment".to_owned(),
        |path| path.display().to_string(),
    );
    let refuse = |error: KubeconfigError| ConnectError::Kubeconfig {
        file: file.clone(),
        error: chain(&error),
    };
    let options = KubeConfigOptions {
        context,
        ..KubeConfigOptions::default()
    };
    let loaded = match &path {
        Some(path) => Kubeconfig::read_from(path).map_err(refuse)?,
        None => Kubeconfig::read().map_err(refuse)?,
    };
    Config::from_custom_kubeconfig(loaded, &options)
        .await
        .map_err(refuse)
}

async fn automatic() -> Result<Config, ConnectError> {
    let in_cluster = match in_cluster() {
        Ok(config) => return Ok(config),
        Err(ConnectError::InCluster(reason)) => reason,
        Err(other) => return Err(other),
    };
    match kubeconfig(None, None).await {
        Err(ConnectError::Kubeconfig { error, .. }) => Err(ConnectError::Neither {
            in_cluster,
            kubeconfig: error,
        }),
        other => other,
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::testing::{ApiServer, Failure};

    fn written(api: &ApiServer) -> (tempfile::TempDir, Access) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(&path, api.kubeconfig()).unwrap();
        let access = Access::Kubeconfig {
            path: Some(path),
            context: None,
        };
        (directory, access)
    }

    #[tokio::test]
    async fn a_kubeconfig_leads_to_the_server() {
        let api = ApiServer::start().await;
        let (_directory, access) = written(&api);
        connect_checked(&access).await.unwrap();
        assert_eq!(api.requests("/version").len(), 1);
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let path = PathBuf::from("/nonexistent/kubeconfig");
        let access = Access::Kubeconfig {
            path: Some(path),
            context: None,
        };
        let error = connect(&access).await.err().unwrap().to_string();
        assert!(error.contains("/nonexistent/kubeconfig"), "{error}");
        assert!(error.contains("; check KUBECONFIG"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_context_is_named() {
        let api = ApiServer::start().await;
        let (_directory, access) = written(&api);
        let Access::Kubeconfig { path, .. } = access else {
            panic!("{access:?}");
        };
        let access = Access::Kubeconfig {
            path,
            context: Some("other".to_owned()),
        };
        let error = connect(&access).await.err().unwrap().to_string();
        assert!(error.contains("other"), "{error}");
    }

    #[tokio::test]
    async fn refusal_and_silence_are_told_apart() {
        let api = ApiServer::start().await;
        let (_directory, access) = written(&api);
        let fault = api.fault("/version", Failure::Refuse(StatusCode::UNAUTHORIZED));
        let refused = connect_checked(&access).await.err().unwrap();
        assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");
        drop(fault);
        let _fault = api.fault("/version", Failure::Reset);
        let silent = connect_checked(&access).await.err().unwrap();
        assert!(
            matches!(silent, ConnectError::Unreachable { .. }),
            "{silent}"
        );
    }
}
