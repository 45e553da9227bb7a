//! Turns by pod: what is done to one pod is done one thing after the other, different pods at once.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::PodKey;

/// The turns that are taken now.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<PodKey, Weak<AsyncMutex<()>>>>);

impl Turns {
    /// Waits for the pod's turn and holds it until the guard is dropped.
    pub async fn take(&self, pod: &PodKey) -> OwnedMutexGuard<()> {
        self.turn(pod).lock_owned().await
    }

    fn turn(&self, pod: &PodKey) -> Arc<AsyncMutex<()>> {
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
