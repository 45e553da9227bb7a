//! Root rotation with overlap: a state machine over what the Secret holds, with time as an argument.
//!
//! A node learns roots only together with a certificate, so a root that is added reaches the last node when the last
//! certificate from before has been renewed or has expired. Each step therefore waits out the longest life that is
//! granted, and a margin for replicas that see a step late:
//!
//! 1. *steady*: one root, which signs.
//! 2. *introducing*: the next root is in every bundle, the old one still signs. When the overlap is over, no valid
//!    certificate came with a bundle that lacks the next root.
//! 3. *retiring*: the next root signs, the old one stays in every bundle. When the overlap is over, no valid
//!    certificate is under the old root, and it is dropped.
//!
//! At each moment every valid certificate is under a root that every holder of a valid certificate trusts.
use std::{
    fmt,
    time::{Duration, SystemTime},
};

use undermesh_identity::{Certificate, CertificateError, NewRoot, certificate};
use zeroize::Zeroizing;

use crate::live::Lifetimes;

/// How much longer than a certificate's life each step lasts, for replicas that learn of it late.
pub const MARGIN: Duration = Duration::from_secs(60 * 60);
/// The margin is at most this part of that life, so that a mesh of short certificates does not rotate for hours.
/// A replica that is cut off from the API server cannot check tokens, and soon signs no more.
const MARGIN_PART: u32 = 4;
/// The part of a root's life that is left when it is replaced, as in istiod.
const RENEWED_BEFORE: u32 = 5;
/// A rotation takes two overlaps; it starts early enough to end before the old root does.
const OVERLAPS_BEFORE_END: u32 = 3;

/// A root with its key, as the Secret holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    /// Its certificate as PEM.
    pub certificate: String,
    /// Its key as PEM.
    pub key: Zeroizing<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Root {
    /// Reads how long the certificate holds; the pair itself is checked when it is used to sign.
    ///
    /// # Errors
    /// When the text holds no certificate.
    pub fn new(certificate: String, key: Zeroizing<String>) -> Result<Self, CertificateError> {
        let first = certificate::parse_pem(certificate.as_bytes())?.remove(0);
        let parsed = Certificate::parse(first)?;
        Ok(Self {
            not_before: parsed.not_before(),
            not_after: parsed.not_after(),
            certificate,
            key,
        })
    }

    fn life(&self) -> Duration {
        self.not_after
            .duration_since(self.not_before)
            .unwrap_or_default()
    }
}

impl TryFrom<NewRoot> for Root {
    type Error = CertificateError;

    fn try_from(new: NewRoot) -> Result<Self, CertificateError> {
        Self::new(new.certificate, new.key)
    }
}

/// Shows the certificate, never the key.
impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// How far a rotation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    Steady,
    /// The next root is made known.
    Introducing {
        /// What will sign.
        next: Root,
        /// Since when it is in every bundle.
        since: SystemTime,
    },
    /// The previous root runs out.
    Retiring {
        /// Its certificate as PEM.
        previous: String,
        /// Since when it signs no more.
        since: SystemTime,
    },
}

impl Phase {
    /// Its name in status and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Introducing { .. } => "introducing",
            Self::Retiring { .. } => "retiring",
        }
    }
}

/// Whether the operator wants another root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Rotate when the root's time comes.
    InTime,
    /// Rotate now.
    Now,
}

/// How long each step lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap(Duration);

impl From<Lifetimes> for Overlap {
    fn from(lifetimes: Lifetimes) -> Self {
        let margin = MARGIN.min(lifetimes.max / MARGIN_PART);
        Self(lifetimes.max.saturating_add(margin))
    }
}

/// The roots of a mesh that makes its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// What signs.
    pub signing: Root,
    /// How far the rotation is.
    pub phase: Phase,
}

impl Roots {
    /// One root.
    pub fn steady(signing: Root) -> Self {
        Self {
            signing,
            phase: Phase::Steady,
        }
    }

    /// What peers are judged by, as PEM; the signing root first.
    pub fn bundle(&self) -> String {
        let other = match &self.phase {
            Phase::Steady => "",
            Phase::Introducing { next, .. } => &next.certificate,
            Phase::Retiring { previous, .. } => previous,
        };
        let mut bundle = self.signing.certificate.clone();
        // Joined lines would make both certificates unreadable.
        if !bundle.ends_with('\n') {
            bundle.push('\n');
        }
        bundle + other
    }

    /// When the next step is due, if nobody asks for one.
    pub fn due(&self, overlap: Overlap) -> SystemTime {
        let later = |since: &SystemTime| since.checked_add(overlap.0);
        let due = match &self.phase {
            Phase::Steady => {
                let early = (self.signing.life() / RENEWED_BEFORE)
                    .max(overlap.0.saturating_mul(OVERLAPS_BEFORE_END));
                self.signing.not_after.checked_sub(early)
            }
            // Nobody can present anything under a root that has expired.
            Phase::Introducing { since, .. } => {
                later(since).map(|due| due.min(self.signing.not_after))
            }
            Phase::Retiring { since, .. } => later(since),
        };
        due.unwrap_or(self.signing.not_after)
    }

    /// The next state, if its time has come. `make` makes a root.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn step<E>(
        &self,
        now: SystemTime,
        overlap: Overlap,
        wish: Wish,
        make: impl FnOnce() -> Result<Root, E>,
    ) -> Result<Option<Self>, E> {
        let asked = wish == Wish::Now && self.phase == Phase::Steady;
        if now < self.due(overlap) && !asked {
            return Ok(None);
        }
        let next = match &self.phase {
            Phase::Steady => Self {
                signing: self.signing.clone(),
                phase: Phase::Introducing {
                    next: make()?,
                    since: now,
                },
            },
            Phase::Introducing { next, .. } => Self {
                signing: next.clone(),
                phase: Phase::Retiring {
                    previous: self.signing.certificate.clone(),
                    since: now,
                },
            },
            Phase::Retiring { .. } => Self::steady(self.signing.clone()),
        };
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{convert::Infallible, sync::LazyLock};
    use undermesh_model::TrustDomain;

    const HOUR: u64 = 3600;
    const START: u64 = 1_800_000_000;

    static POOL: LazyLock<Vec<Root>> = LazyLock::new(|| {
        let make = |_| NewRoot::make(&TrustDomain::cluster_local(), at(START));
        let roots = (0..4).map(make).map(Result::unwrap);
        roots.map(|root| root.try_into().unwrap()).collect()
    });

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * HOUR)
    }

    fn overlap() -> Overlap {
        Lifetimes {
            default: hours(24),
            max: hours(24),
        }
        .into()
    }

    fn step(roots: &Roots, seconds: u64, wish: Wish, next: usize) -> Option<Roots> {
        let make = || Ok::<_, Infallible>(POOL[next].clone());
        roots.step(at(seconds), overlap(), wish, make).unwrap()
    }

    #[test]
    fn nothing_happens_to_a_young_root() {
        let roots = Roots::steady(POOL[0].clone());
        assert_eq!(step(&roots, START + HOUR, Wish::InTime, 1), None);
        assert_eq!(roots.bundle(), POOL[0].certificate);
    }

    #[test]
    fn a_root_is_replaced_in_the_last_fifth_of_its_life() {
        let roots = Roots::steady(POOL[0].clone());
        let year = 365 * 24 * HOUR;
        assert_eq!(step(&roots, START + 8 * year - HOUR, Wish::InTime, 1), None);
        let next = step(&roots, START + 8 * year + HOUR, Wish::InTime, 1).unwrap();
        assert_eq!(next.phase.label(), "introducing");
    }

    #[test]
    fn a_rotation_takes_two_overlaps_and_ends_with_the_new_root_alone() {
        let roots = Roots::steady(POOL[0].clone());
        let introducing = step(&roots, START, Wish::Now, 1).unwrap();
        assert_eq!(introducing.signing, POOL[0]);
        assert_eq!(
            certificate::parse_pem(introducing.bundle().as_bytes())
                .unwrap()
                .len(),
            2
        );
        let (first, second) = (START + 25 * HOUR, START + 50 * HOUR);
        assert_eq!(step(&introducing, first - 1, Wish::Now, 2), None);
        let retiring = step(&introducing, first, Wish::InTime, 2).unwrap();
        assert_eq!(retiring.signing, POOL[1]);
        assert_eq!(
            certificate::parse_pem(retiring.bundle().as_bytes())
                .unwrap()
                .len(),
            2
        );
        assert_eq!(step(&retiring, second - 1, Wish::Now, 2), None);
        let done = step(&retiring, second, Wish::InTime, 2).unwrap();
        assert_eq!(done, Roots::steady(POOL[1].clone()));
    }

    #[test]
    fn short_certificates_make_short_rotations() {
        let lifetimes = |max| Lifetimes { default: max, max };
        assert_eq!(Overlap::from(lifetimes(hours(48))).0, hours(49));
        assert_eq!(
            Overlap::from(lifetimes(hours(2))).0,
            hours(2) + hours(1) / 2
        );
    }

    #[test]
    fn an_expired_root_does_not_hold_up_its_successor() {
        let roots = Roots {
            signing: POOL[0].clone(),
            phase: Phase::Introducing {
                next: POOL[1].clone(),
                since: POOL[0].not_after - hours(1),
            },
        };
        let expired = START + 10 * 365 * 24 * HOUR;
        assert_eq!(
            step(&roots, expired, Wish::InTime, 2).unwrap().signing,
            POOL[1]
        );
    }

    #[test]
    fn no_key_is_shown() {
        assert!(!format!("{:?}", Roots::steady(POOL[0].clone())).contains("PRIVATE"));
    }

    /// A certificate that a node holds: under which root, with which bundle, until when.
    struct Held {
        issuer: String,
        bundle: String,
        until: u64,
    }

    proptest! {
        /// Nodes renew whenever they like, replicas sign from a state up to the margin old, the controller sleeps and
        /// wakes: whoever holds a valid certificate trusts whoever else does.
        #[test]
        fn no_two_valid_certificates_ever_refuse_each_other(
            turns in prop::collection::vec((1..10 * HOUR, 0..MARGIN.as_secs(), 1..=24u64, any::<bool>()), 1..150),
        ) {
            let mut now = START;
            let mut history = vec![(now, Roots::steady(POOL[0].clone()))];
            let mut made = 0;
            let mut held: Vec<Held> = Vec::new();
            for (passed, lag, life, wish) in turns {
                now += passed;
                let wish = if wish { Wish::Now } else { Wish::InTime };
                let roots = &history.last().unwrap().1;
                if let Some(next) = step(roots, now, wish, (made + 1) % POOL.len()) {
                    made += usize::from(matches!(next.phase, Phase::Introducing { .. }));
                    history.push((now, next));
                }
                let seen = history.iter().rev().find(|(since, _)| *since + lag <= now);
                let (_, signer) = seen.unwrap_or(&history[0]);
                held.push(Held {
                    issuer: signer.signing.certificate.clone(),
                    bundle: signer.bundle(),
                    until: now + life * HOUR,
                });
                held.retain(|certificate| certificate.until >= now);
                for (one, other) in held.iter().flat_map(|one| held.iter().map(move |other| (one, other))) {
                    prop_assert!(one.bundle.contains(&other.issuer));
                }
            }
        }
    }
}
