//! Lets a few requests to the issuer run at once, those that somebody waits for first.
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// How soon a certificate is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// There is no valid one: connections wait.
    FirstUse,
    /// The current one still holds.
    Rotation,
}

/// A semaphore with two queues.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    first_use: VecDeque<oneshot::Sender<Permit>>,
    rotation: VecDeque<oneshot::Sender<Permit>>,
}

/// The right to send one request; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Option<Arc<Gate>>,
}

impl Gate {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        let state = State {
            free: places,
            first_use: VecDeque::new(),
            rotation: VecDeque::new(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    /// Waits for a place; cancelling the wait is safe.
    pub(crate) async fn enter(self: &Arc<Self>, urgency: Urgency) -> Permit {
        loop {
            let waiting = {
                let mut state = self.lock();
                if state.free > 0 {
                    state.free -= 1;
                    return self.permit();
                }
                let (sender, receiver) = oneshot::channel();
                match urgency {
                    Urgency::FirstUse => state.first_use.push_back(sender),
                    Urgency::Rotation => state.rotation.push_back(sender),
                }
                receiver
            };
            if let Ok(permit) = waiting.await {
                return permit;
            }
        }
    }

    fn permit(self: &Arc<Self>) -> Permit {
        Permit {
            gate: Some(Arc::clone(self)),
        }
    }

    /// The next in line; if there is none, the place is free again.
    fn next(&self) -> Option<oneshot::Sender<Permit>> {
        let mut state = self.lock();
        let next = state
            .first_use
            .pop_front()
            .or_else(|| state.rotation.pop_front());
        if next.is_none() {
            state.free += 1;
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(gate) = self.gate.take() else { return };
        while let Some(next) = gate.next() {
            match next.send(gate.permit()) {
                Ok(()) => return,
                // That one no longer waits. Its permit must not open the gate a second time.
                Err(mut unclaimed) => unclaimed.gate = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, poll};
    use std::pin::pin;

    #[tokio::test]
    async fn first_use_goes_before_rotation() {
        let gate = Gate::new(1);
        let held = gate.enter(Urgency::Rotation).await;
        let mut rotation = pin!(gate.enter(Urgency::Rotation));
        let mut first_use = pin!(gate.enter(Urgency::FirstUse));
        assert!(poll!(&mut rotation).is_pending());
        assert!(poll!(&mut first_use).is_pending());
        drop(held);
        assert!(poll!(&mut rotation).is_pending());
        let held = first_use.now_or_never().unwrap();
        drop(held);
        assert!(rotation.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_cancelled_wait_does_not_lose_the_place() {
        let gate = Gate::new(1);
        let held = gate.enter(Urgency::FirstUse).await;
        let mut cancelled = Box::pin(gate.enter(Urgency::FirstUse));
        assert!(poll!(&mut cancelled).is_pending());
        drop(cancelled);
        let mut granted = Box::pin(gate.enter(Urgency::FirstUse));
        assert!(poll!(&mut granted).is_pending());
        drop(held);
        drop(granted);
        assert!(gate.enter(Urgency::Rotation).now_or_never().is_some());
        assert_eq!(gate.lock().free, 1);
    }
}
