//! Bringing the manifests into a cluster, and out of it again.
mod apply;
mod error;
mod install;
mod labels;
mod preflight;
mod problem;
mod progress;
mod record;
mod remove;
mod summary;
mod uninstall;
mod wait;

pub use apply::Change;
pub use error::InstallError;
pub use install::{install, render_install, render_upgrade, upgrade};
pub use problem::{Problem, Severity};
pub use progress::{Event, Lines, Progress};
pub use summary::{Removed, Summary};
pub use uninstall::{uninstall, what_goes};

use kube::{
    Api, Client,
    core::{DynamicObject, Resource},
};

use crate::kinds::{Kind, Scope};

/// The name under which fields are owned (server-side apply) and requests are made.
pub const FIELD_MANAGER: &str = "undermesh";

/// Requests at a time where order does not matter.
const CONCURRENCY: usize = 8;
/// Objects in one page of a list.
const PAGE: u32 = 500;

/// The objects of a kind; those of `namespace` where they live in namespaces.
fn api(client: &Client, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
    match kind.scope {
        Scope::Cluster => Api::all_with(client.clone(), &kind.resource()),
        Scope::Namespaced => Api::namespaced_with(client.clone(), namespace, &kind.resource()),
    }
}

/// All objects of a list, page by page, each made smaller by `keep`.
async fn list<K, T>(
    api: &Api<K>,
    params: kube::api::ListParams,
    mut keep: impl FnMut(K) -> Option<T>,
) -> kube::Result<Vec<T>>
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut params = params.limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = api.list(&params).await?;
        found.extend(page.items.into_iter().filter_map(&mut keep));
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(found),
        }
    }
}

/// Whether the API server said that something does not exist.
fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests;
