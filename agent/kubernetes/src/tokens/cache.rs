//! Positive reviews by the SHA-256 of the token; the tokens themselves are not kept.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard},
    time::Instant,
};
use undermesh_identity::Caller;

type Hash = [u8; 32];

/// The place of one token; locked while it is under review.
#[derive(Debug)]
pub(super) struct Slot {
    hash: Hash,
    known: AsyncMutex<Known>,
}

impl Slot {
    pub async fn lock(&self) -> AsyncMutexGuard<'_, Known> {
        self.known.lock().await
    }
}

/// Who a token stands for, and until when that is believed.
#[derive(Debug, Default)]
pub(super) struct Known(Option<(Caller, Instant)>);

impl Known {
    pub fn caller(&self, now: Instant) -> Option<&Caller> {
        let (caller, until) = self.0.as_ref()?;
        (now < *until).then_some(caller)
    }

    pub fn remember(&mut self, caller: Caller, until: Instant) {
        self.0 = Some((caller, until));
    }
}

/// All slots, at most as many as were allowed.
#[derive(Debug)]
pub(super) struct Cache {
    slots: Mutex<Slots>,
    remember: Duration,
    most: usize,
}

#[derive(Debug)]
struct Slots {
    by_hash: HashMap<Hash, Arc<Slot>>,
    swept: Instant,
}

impl Cache {
    pub fn new(remember: Duration, most: usize) -> Self {
        Self {
            slots: Mutex::new(Slots {
                by_hash: HashMap::new(),
                swept: Instant::now(),
            }),
            remember,
            most,
        }
    }

    /// The slot of a token; `None` when there is no room for another one.
    pub fn slot(&self, token: &str, now: Instant) -> Option<Arc<Slot>> {
        let hash = hash(token);
        let mut slots = self.lock();
        if now.saturating_duration_since(slots.swept) >= self.remember {
            slots.swept = now;
            slots.by_hash.retain(|_, slot| is_of_use(slot, now));
        }
        if let Some(slot) = slots.by_hash.get(&hash) {
            return Some(slot.clone());
        }
        if slots.by_hash.len() >= self.most {
            return None;
        }
        let slot = Arc::new(Slot {
            hash,
            known: AsyncMutex::default(),
        });
        slots.by_hash.insert(hash, slot.clone());
        Some(slot)
    }

    /// Gives the place of a token free that is not known.
    pub fn forget(&self, slot: &Arc<Slot>) {
        let mut slots = self.lock();
        let is_in_place = slots
            .by_hash
            .get(&slot.hash)
            .is_some_and(|it| Arc::ptr_eq(it, slot));
        if is_in_place {
            slots.by_hash.remove(&slot.hash);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot under review is locked, and of use.
fn is_of_use(slot: &Slot, now: Instant) -> bool {
    match slot.known.try_lock() {
        Ok(known) => known.caller(now).is_some(),
        Err(_) => true,
    }
}

fn hash(token: &str) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller {
            namespace: "a".to_owned(),
            service_account: "b".to_owned(),
            pod: None,
        }
    }

    #[tokio::test]
    async fn holds_no_more_than_allowed_and_makes_room_for_new_ones() {
        let cache = Cache::new(Duration::from_secs(10), 2);
        let now = Instant::now();
        for token in ["x", "y"] {
            let slot = cache.slot(token, now).unwrap();
            slot.lock().await.remember(caller(), now + cache.remember);
        }
        assert!(cache.slot("z", now).is_none());
        let later = now + Duration::from_secs(10);
        assert!(cache.slot("z", later).is_some());
    }

    #[tokio::test]
    async fn a_forgotten_token_leaves_its_place() {
        let cache = Cache::new(Duration::from_secs(10), 1);
        let now = Instant::now();
        let slot = cache.slot("x", now).unwrap();
        cache.forget(&slot);
        assert!(cache.slot("y", now).is_some());
    }
}
