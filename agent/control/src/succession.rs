//! What is in force once an object was read: itself, its last good version, or what stands in for it.
use crate::resources::{Outcome, Resource};

/// A resource in force.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// The resource.
    pub(crate) resource: Resource,
    /// Whether it was good when it was read, and so may outlive a bad successor.
    pub(crate) is_good: bool,
}

/// What follows `before`, and what is to be said of it.
pub(crate) fn succeed(
    outcome: &Outcome,
    before: Option<&Held>,
) -> Option<(Held, Option<&'static str>)> {
    match outcome {
        Outcome::Good(resource) => {
            let held = Held {
                resource: resource.clone(),
                is_good: true,
            };
            Some((held, None))
        }
        Outcome::Bad(stand_in) => {
            if let Some(before) = before.filter(|before| before.is_good) {
                return Some((before.clone(), Some(KEPT)));
            }
            let resource = stand_in.clone()?;
            let message = stand_in_message(&resource);
            let held = Held {
                resource,
                is_good: false,
            };
            Some((held, Some(message)))
        }
        Outcome::Noted => None,
    }
}

/// What to do about an object that is not in force as written.
pub(crate) const REMEDY: &str = "correct the errors above";

const KEPT: &str = "its last good version stays in force";

fn stand_in_message(stand_in: &Resource) -> &'static str {
    match stand_in {
        Resource::PeerAuthentication(_) => {
            "requires mTLS of everything it selects until it can be read"
        }
        _ => "denies everything it selects until it can be read",
    }
}
