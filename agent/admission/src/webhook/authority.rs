//! The CA by which the API server knows the webhook: `caBundle` of our ValidatingWebhookConfiguration, kept as the
//! root bundle is.
use std::{convert::Infallible, time::Duration};

use futures::StreamExt;
use k8s_openapi::{
    ByteString, api::admissionregistration::v1::ValidatingWebhookConfiguration as Configuration,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// The name under which the API server keeps what we write.
const FIELD_MANAGER: &str = "undermesh-webhook";
/// Longest wait for an answer of the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait after a failed write; doubles up to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What the bundle depends on.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The root bundle, in PEM; empty while there is none.
    pub roots: watch::Receiver<String>,
    /// Whether this replica leads: it alone writes.
    pub leads: watch::Receiver<bool>,
}

/// Keeps the bundle in the configuration `name`, until dropped. Without such a configuration it waits for one; a
/// sender that is gone has said its last word.
pub async fn keep(client: Client, name: &str, mut inputs: Inputs) -> Infallible {
    let api: Api<Configuration> = Api::all(client);
    loop {
        lead(&mut inputs.leads, true).await;
        tokio::select! {
            () = lead(&mut inputs.leads, false) => {}
            never = follow(&api, name, inputs.roots.clone()) => match never {},
        }
    }
}

/// Waits until this replica leads, or does not.
async fn lead(leads: &mut watch::Receiver<bool>, wanted: bool) {
    if leads.wait_for(|it| *it == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Writes the bundle whenever it or the configuration changes.
async fn follow(
    api: &Api<Configuration>,
    name: &str,
    mut roots: watch::Receiver<String>,
) -> Infallible {
    let mut seen = std::pin::pin!(watcher::watch_object(api.clone(), name).default_backoff());
    let mut current = None;
    let mut retry = FIRST_RETRY;
    loop {
        let bundle = roots.borrow_and_update().clone();
        let due = current
            .as_ref()
            .filter(|it| !bundle.is_empty() && !holds(it, &bundle));
        let written = match due {
            Some(configuration) => write(api, name, configuration, &bundle).await,
            None => Ok(()),
        };
        if let Err(error) = &written {
            tracing::warn!(
                "cannot write the CA of the webhook {name}: {error}; trying again in {retry:?}"
            );
        }
        // The object that was just written comes through the watch, too.
        tokio::select! {
            () = sleep(retry), if written.is_err() => retry = (retry * 2).min(LONGEST_RETRY),
            Some(event) = seen.next() => match event {
                Ok(configuration) => {
                    current = configuration;
                    retry = FIRST_RETRY;
                }
                Err(error) => tracing::warn!("cannot watch the webhook configuration {name}: {error}"),
            },
            Ok(()) = roots.changed() => {}
        }
    }
}

fn holds(configuration: &Configuration, bundle: &str) -> bool {
    let mut hooks = configuration.webhooks.iter().flatten();
    hooks.all(|hook| {
        let held = hook.client_config.ca_bundle.as_ref();
        held.is_some_and(|held| held.0 == bundle.as_bytes())
    })
}

/// Writes the whole list, which a merge patch cannot write in part, if it is still the one that was seen.
async fn write(
    api: &Api<Configuration>,
    name: &str,
    seen: &Configuration,
    bundle: &str,
) -> Result<(), WriteError> {
    let mut hooks = seen.webhooks.clone().unwrap_or_default();
    for hook in &mut hooks {
        hook.client_config.ca_bundle = Some(ByteString(bundle.as_bytes().to_vec()));
    }
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": seen.resource_version() },
        "webhooks": hooks,
    }));
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match timeout(REQUEST_TIMEOUT, api.patch(name, &params, &patch)).await {
        Ok(Ok(_)) => Ok(()),
        // A newer one is on its way through the watch.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
        Ok(Err(error)) => Err(WriteError::Refused(Box::new(error))),
        Err(_) => Err(WriteError::Silence),
    }
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("{0}; check that the controller may patch it")]
    Refused(Box<kube::Error>),
    #[error("the API server does not answer")]
    Silence,
}
