//! The objects that get conditions, as far as the writer needs them: followed while this replica leads.
use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde_json::Value as Json;
use tokio::{sync::mpsc, time::sleep};
use undermesh_control::resources::{Key, kinds::Kind};

use super::conditions::Subject;
use crate::kinds;

/// Objects in a page of a list.
const PAGE: u32 = 500;
/// How soon an API server that does not answer is asked again: it may have the kind all the same.
const UNANSWERED_RETRY: Duration = Duration::from_secs(2);

/// What the writer knows of an object.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub resource: Arc<ApiResource>,
    pub resource_version: Option<String>,
    pub generation: Option<i64>,
    /// `status.conditions`.
    pub conditions: Vec<Json>,
    pub subject: Subject,
}

/// What happened to an object.
#[derive(Debug)]
pub(super) enum News {
    Seen(Key, Box<Observed>),
    Gone(Key),
}

/// Follows a kind until the writer has gone.
pub(super) async fn follow(
    client: Client,
    kind: Kind,
    absent_retry: Duration,
    output: mpsc::Sender<News>,
) {
    let resource = Arc::new(served(&client, kind, absent_retry).await);
    let api: Api<DynamicObject> = Api::all_with(client, &*resource);
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = std::pin::pin!(watcher::watcher(api, config).default_backoff());
    let mut listing = Listing::default();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!("status: cannot watch {}: {error}", kind.plural());
                continue;
            }
        };
        for news in listing.take(event, kind, &resource) {
            if output.send(news).await.is_err() {
                return;
            }
        }
    }
}

/// Waits until the cluster has the kind.
async fn served(client: &Client, kind: Kind, absent_retry: Duration) -> ApiResource {
    loop {
        let retry = match kinds::served(client, kind).await {
            Ok(Some(resource)) => return resource,
            Ok(None) => absent_retry,
            Err(error) => {
                tracing::warn!("status: cannot look for {}: {error}", kind.plural());
                UNANSWERED_RETRY
            }
        };
        sleep(retry).await;
    }
}

/// Which objects there are, so that those are known that a new list lacks.
#[derive(Default)]
struct Listing {
    known: HashSet<Key>,
    missing: HashSet<Key>,
}

impl Listing {
    fn take(
        &mut self,
        event: Event<DynamicObject>,
        kind: Kind,
        resource: &Arc<ApiResource>,
    ) -> Vec<News> {
        match event {
            Event::Init => {
                self.missing = self.known.clone();
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let key = key(kind, &object);
                self.missing.remove(&key);
                self.known.insert(key.clone());
                vec![News::Seen(key, Box::new(observed(kind, &object, resource)))]
            }
            Event::Delete(object) => {
                let key = key(kind, &object);
                self.known.remove(&key);
                vec![News::Gone(key)]
            }
            Event::InitDone => {
                let gone = std::mem::take(&mut self.missing);
                self.known.retain(|key| !gone.contains(key));
                gone.into_iter().map(News::Gone).collect()
            }
        }
    }
}

fn key(kind: Kind, object: &DynamicObject) -> Key {
    let namespace = object.namespace().unwrap_or_default();
    Key::new(kind, namespace.into(), object.name_any().into())
}

fn observed(kind: Kind, object: &DynamicObject, resource: &Arc<ApiResource>) -> Observed {
    let json = kinds::json(object);
    Observed {
        resource: resource.clone(),
        resource_version: object.resource_version(),
        generation: object.metadata.generation,
        conditions: json["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default(),
        subject: Subject::read(kind, &json),
    }
}
