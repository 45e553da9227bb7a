//! Follows one stream of SPIRE's agent: the last message is kept, and a stream that ends is opened again.
use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    runtime::Handle,
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep},
};
use tonic::{Status, Streaming};

use super::SpireError;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(15);
/// A stream that lived so long was sound: the next attempt comes soon.
const SOUND: Duration = Duration::from_secs(30);

/// A message whose content is kept.
pub(super) trait Message: Send + 'static {
    /// What is kept of it.
    type Content: PartialEq + Send + Sync + 'static;

    /// Takes it out.
    fn content(self) -> Self::Content;
}

/// The last content of a stream.
pub(super) struct Feed<T> {
    latest: watch::Receiver<Option<Arc<T>>>,
    changes: watch::Sender<u64>,
    task: AbortHandle,
}

impl<T> Drop for Feed<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: PartialEq + Send + Sync + 'static> Feed<T> {
    /// Opens the stream, again and again, in a task that ends with this.
    pub(super) fn start<M: Message<Content = T>>(
        runtime: &Handle,
        open: impl Fn() -> BoxFuture<'static, Result<Streaming<M>, Status>> + Send + Sync + 'static,
    ) -> Self {
        let (sender, latest) = watch::channel(None);
        let changes = watch::Sender::new(0);
        let task = runtime.spawn(follow(open, sender, changes.clone()));
        Self {
            latest,
            changes,
            task: task.abort_handle(),
        }
    }

    /// Counts the changes after the first message.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until `choose` finds something in the content. Without an agent this waits without end: callers bound it.
    pub(super) async fn wait_for<R, E>(
        &self,
        choose: impl Fn(&T) -> Option<Result<R, E>>,
    ) -> Result<R, SpireError>
    where
        SpireError: From<E>,
    {
        let mut latest = self.latest.clone();
        loop {
            let content = latest.borrow_and_update().clone();
            if let Some(chosen) = content.as_deref().and_then(&choose) {
                return chosen.map_err(SpireError::from);
            }
            latest.changed().await.map_err(|_| SpireError::Timeout)?;
        }
    }
}

async fn follow<M: Message>(
    open: impl Fn() -> BoxFuture<'static, Result<Streaming<M>, Status>>,
    latest: watch::Sender<Option<Arc<M::Content>>>,
    changes: watch::Sender<u64>,
) {
    let mut wait = FIRST_RETRY;
    loop {
        let start = Instant::now();
        let ended = async {
            let mut stream = open().await?;
            while let Some(message) = stream.message().await? {
                keep(message.content(), &latest, &changes);
            }
            Err::<(), _>(Status::unavailable("the stream has ended"))
        };
        if let Err(status) = ended.await {
            tracing::warn!(code = ?status.code(), message = status.message(), "SPIRE's agent gives no updates; trying again");
        }
        if start.elapsed() > SOUND {
            wait = FIRST_RETRY;
        }
        sleep(wait).await;
        wait = (2 * wait).min(MAX_RETRY);
    }
}

fn keep<T: PartialEq>(
    content: T,
    latest: &watch::Sender<Option<Arc<T>>>,
    changes: &watch::Sender<u64>,
) {
    let before = latest.borrow().clone();
    if before.as_deref() == Some(&content) {
        return;
    }
    latest.send_replace(Some(Arc::new(content)));
    if before.is_some() {
        changes.send_modify(|generation| *generation += 1);
    }
}
