//! Turns by pod: what is done to one pod is done one thing after the other, different pods at once.
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The turns that are taken now.
#[derive(Debug)]
pub struct Turns<K>(Mutex<HashMap<K, Weak<AsyncMutex<()>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Waits for the pod's turn and holds it until the guard is dropped.
    pub async fn take(&self, pod: &K) -> OwnedMutexGuard<()> {
        self.turn(pod).lock_owned().await
    }

    fn turn(&self, pod: &K) -> Arc<AsyncMutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(pod).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(AsyncMutex::new(()));
        turns.insert(pod.clone(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        task::{Context, Waker},
    };

    use super::*;

    #[tokio::test]
    async fn one_pod_waits_for_itself_and_for_no_other() {
        let turns = Turns::default();
        let (cart, web) = ("cart", "web");
        let mut context = Context::from_waker(Waker::noop());
        let first = turns.take(&cart).await;
        let mut second = Box::pin(turns.take(&cart));
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(turns.take(&web).await);
        drop(first);
        assert!(second.as_mut().poll(&mut context).is_ready());
        drop(second);
        drop(turns.take(&web).await);
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }
}
