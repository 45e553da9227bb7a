//! The cache under tokio's paused clock: a day passes in a moment, and each second where it should.
use std::sync::atomic::{AtomicBool, AtomicUsize};

use futures::future::{BoxFuture, FutureExt};
use rand::SeedableRng;
use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::{
    issuer::IssuedCertificate,
    schedule::MAX_RETRY,
    testing::{TestMesh, TokioClock},
};

const HOUR: Duration = Duration::from_secs(3600);

fn id(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
        .parse()
        .unwrap()
}

/// A CA that can be slow or down, and counts.
struct Moody {
    mesh: TestMesh,
    down: AtomicBool,
    delay: Duration,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

impl Issuer for Moody {
    fn issue(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<IssuedCertificate, IssueError>> {
        async move {
            let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_running.fetch_max(running, Ordering::Relaxed);
            sleep(self.delay).await;
            self.running.fetch_sub(1, Ordering::Relaxed);
            if self.down.load(Ordering::Relaxed) {
                return Err(IssueError::Unavailable {
                    identity: request.identity,
                    reason: "it is down".to_owned(),
                });
            }
            self.mesh.authority().sign(&request)
        }
        .boxed()
    }
}

struct Bench {
    issuer: Arc<Moody>,
    cache: CertificateCache,
}

impl Bench {
    fn new() -> Self {
        Self::slow(Duration::ZERO)
    }

    fn slow(delay: Duration) -> Self {
        let clock = TokioClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let issuer = Arc::new(Moody {
            mesh: TestMesh::at("cluster.local", Arc::clone(&clock) as Arc<dyn Clock>),
            down: AtomicBool::new(false),
            delay,
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
        });
        let options = CacheOptions {
            lifetime: 24 * HOUR,
            clock,
            rng: StdRng::seed_from_u64(7),
        };
        let cache = CertificateCache::new(
            Arc::clone(&issuer) as Arc<dyn Issuer>,
            options,
            Handle::current(),
        );
        Self { issuer, cache }
    }

    fn set_down(&self, down: bool) {
        self.issuer.down.store(down, Ordering::Relaxed);
    }

    fn only_report(&self) -> CertificateReport {
        let reports = self.cache.list();
        assert_eq!(reports.len(), 1);
        reports.into_iter().next().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_made_ahead_of_need() {
    let bench = Bench::new();
    let cart = bench.cache.acquire(&id("cart"));
    assert_eq!(cart.load().unwrap_err(), NotReady::Pending(id("cart")));
    assert_eq!(bench.only_report().state, CertificateState::Pending);
    let certificate = cart.ready().await;
    assert_eq!(certificate.identity(), &id("cart"));
    assert!(Arc::ptr_eq(&certificate, &cart.load().unwrap()));
    assert!(Arc::ptr_eq(
        &certificate,
        &bench.cache.current(&id("cart")).unwrap()
    ));
    assert_eq!(bench.only_report().state, CertificateState::Valid);
}

#[tokio::test(start_paused = true)]
async fn pods_of_one_identity_share_its_certificate_until_the_last_leaves() {
    let bench = Bench::new();
    let (one, two) = (
        bench.cache.acquire(&id("cart")),
        bench.cache.acquire(&id("cart")),
    );
    assert!(Arc::ptr_eq(&one.ready().await, &two.ready().await));
    assert_eq!(bench.cache.counters().issued(), 1);
    drop(one);
    assert!(bench.cache.current(&id("cart")).is_some());
    drop(two);
    assert!(bench.cache.current(&id("cart")).is_none());
    assert!(bench.cache.list().is_empty());
    sleep(24 * HOUR).await;
    assert_eq!(
        bench.cache.counters().issued(),
        1,
        "what is forgotten is not rotated"
    );
    let again = bench.cache.acquire(&id("cart")).ready().await;
    assert_eq!(again.identity(), &id("cart"));
    assert_eq!(bench.cache.counters().issued(), 2);
}

#[tokio::test(start_paused = true)]
async fn it_is_rotated_around_half_life_with_a_new_key() {
    let bench = Bench::new();
    let cart = bench.cache.acquire(&id("cart"));
    let old = cart.ready().await;
    let mut generation = cart.subscribe();
    generation.mark_unchanged();
    let start = Instant::now();
    generation.changed().await.unwrap();
    let waited = start.elapsed();
    assert!(
        (12 * HOUR).mul_f64(0.9) <= waited && waited <= (12 * HOUR).mul_f64(1.1),
        "{waited:?}"
    );
    let new = cart.load().unwrap();
    assert_ne!(old.serial(), new.serial());
    let key = |certificate: &WorkloadCertificate| {
        let leaf = crate::certificate::parse_pem(certificate.chain_pem().as_bytes())
            .unwrap()
            .remove(0);
        crate::certificate::public_key_of(&leaf).unwrap()
    };
    assert_ne!(key(&old), key(&new));
    assert!(
        old.not_after() > bench.issuer.mesh.clock().now(),
        "connections that hold the old one go on"
    );
}

#[tokio::test(start_paused = true)]
async fn chance_is_injected_so_that_times_repeat() {
    let mut renewals = Vec::new();
    for _ in 0..2 {
        let bench = Bench::new();
        let cart = bench.cache.acquire(&id("cart"));
        let certificate = cart.ready().await;
        let renewal = bench.only_report().renewal.unwrap();
        renewals.push(
            certificate
                .not_after()
                .duration_since(renewal)
                .unwrap()
                .as_secs(),
        );
    }
    assert_eq!(renewals[0], renewals[1]);
}

#[tokio::test(start_paused = true)]
async fn a_failing_issuer_is_asked_ever_more_rarely() {
    let bench = Bench::new();
    bench.set_down(true);
    let cart = bench.cache.acquire(&id("cart"));
    sleep(Duration::from_secs(15)).await;
    let early = bench.cache.counters().failed();
    assert!((4..=6).contains(&early), "{early}");
    let error = cart.load().unwrap_err();
    assert!(
        matches!(&error, NotReady::Failed(_, why) if why.contains("it is down")),
        "{error}"
    );
    assert_eq!(bench.only_report().state, CertificateState::Failed);
    sleep(Duration::from_secs(600)).await;
    let before = bench.cache.counters().failed();
    sleep(MAX_RETRY * 10).await;
    let late = bench.cache.counters().failed() - before;
    assert!((8..=13).contains(&late), "{late}");
    bench.set_down(false);
    cart.ready().await;
    assert_eq!(bench.only_report().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_serves_until_it_expires_and_not_longer() {
    let bench = Bench::new();
    let cart = bench.cache.acquire(&id("cart"));
    let old = cart.ready().await;
    bench.set_down(true);
    sleep(24 * HOUR - Duration::from_secs(5)).await;
    assert!(Arc::ptr_eq(&old, &cart.load().unwrap()));
    assert_eq!(bench.only_report().state, CertificateState::Stale);
    sleep(Duration::from_secs(10)).await;
    let error = cart.load().unwrap_err();
    assert!(
        matches!(&error, NotReady::Expired(_, why) if why.contains("it is down")),
        "{error}"
    );
    assert!(bench.cache.current(&id("cart")).is_none());
    assert_eq!(bench.only_report().state, CertificateState::Expired);
    bench.set_down(false);
    assert_ne!(cart.ready().await.serial(), old.serial());
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_never_answers_is_given_up() {
    let bench = Bench::slow(REQUEST_TIMEOUT * 10);
    let cart = bench.cache.acquire(&id("cart"));
    sleep(REQUEST_TIMEOUT + Duration::from_millis(10)).await;
    let error = cart.load().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("did not answer within 30 seconds"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn few_requests_run_at_once_and_all_are_served() {
    let bench = Bench::slow(Duration::from_secs(1));
    let handles: Vec<_> = (0..50)
        .map(|number| bench.cache.acquire(&id(&format!("pod-{number}"))))
        .collect();
    for handle in &handles {
        handle.ready().await;
    }
    assert_eq!(
        bench.issuer.most_running.load(Ordering::Relaxed),
        MAX_PARALLEL_REQUESTS
    );
    assert_eq!(bench.cache.list().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_clock_is_noticed() {
    let clock = crate::testing::ManualClock::new(
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    );
    let mesh = TestMesh::at("cluster.local", Arc::clone(&clock) as Arc<dyn Clock>);
    let cache = mesh.cache(Handle::current());
    let cart = cache.acquire(&id("cart"));
    let old = cart.ready().await;
    // As after a machine slept: the time of day has moved on, tokio's clock has not.
    clock.advance(48 * HOUR);
    assert!(matches!(cart.load(), Err(NotReady::Expired(..))));
    advance(crate::schedule::MAX_NAP).await;
    assert_ne!(cart.ready().await.serial(), old.serial());
}

/// Certifies somebody else than it was asked for.
struct Confused(TestMesh);

impl Issuer for Confused {
    fn issue(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<IssuedCertificate, IssueError>> {
        let request = CertificateRequest {
            identity: id("admin"),
            ..request
        };
        std::future::ready(self.0.authority().sign(&request)).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_somebody_else_is_not_used() {
    let issuer = Arc::new(Confused(TestMesh::new("cluster.local")));
    let cache = CertificateCache::new(issuer, CacheOptions::default(), Handle::current());
    let cart = cache.acquire(&id("cart"));
    sleep(Duration::from_millis(10)).await;
    let error = cart.load().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("certified spiffe://cluster.local/ns/shop/sa/admin"),
        "{error}"
    );
    assert_eq!(
        (cache.counters().issued(), cache.counters().failed()),
        (0, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn operators_see_every_identity_and_never_a_key() {
    let bench = Bench::new();
    let handles = ["web", "cart"].map(|account| bench.cache.acquire(&id(account)));
    for handle in &handles {
        handle.ready().await;
    }
    let reports = serde_json::to_value(bench.cache.list()).unwrap();
    assert_eq!(
        reports[0]["identity"],
        "spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert_eq!(
        reports[1]["identity"],
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    assert_eq!(reports[0]["state"], "valid");
    assert_eq!(reports[0]["notBefore"], "2027-01-15T07:59:00Z");
    assert_eq!(reports[0]["notAfter"], "2027-01-16T08:00:00Z");
    for (field, label) in [
        ("chainPem", "BEGIN CERTIFICATE"),
        ("rootsPem", "BEGIN CERTIFICATE"),
    ] {
        assert!(reports[0][field].as_str().unwrap().contains(label));
    }
    let shown = format!("{reports} {handles:?} {:?}", handles[0].load());
    assert!(!shown.contains("PRIVATE KEY"));
}

/// A CA that tells when its roots have changed.
struct Telling(TestMesh, watch::Sender<u64>);

impl Issuer for Telling {
    fn issue(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<IssuedCertificate, IssueError>> {
        std::future::ready(self.0.authority().sign(&request)).boxed()
    }

    fn renewals(&self) -> Option<watch::Receiver<u64>> {
        Some(self.1.subscribe())
    }
}

#[tokio::test(start_paused = true)]
async fn certificates_are_asked_for_anew_when_the_issuer_has_other_roots() {
    let clock = TokioClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let mesh = TestMesh::at("cluster.local", Arc::clone(&clock) as Arc<dyn Clock>);
    let issuer = Arc::new(Telling(mesh, watch::Sender::new(0)));
    let options = CacheOptions {
        clock,
        ..CacheOptions::default()
    };
    let cache = CertificateCache::new(
        Arc::clone(&issuer) as Arc<dyn Issuer>,
        options,
        Handle::current(),
    );
    let cart = cache.acquire(&id("cart"));
    let first = cart.ready().await;
    let (mut changes, start) = (cart.subscribe(), Instant::now());
    issuer.1.send_modify(|generation| *generation += 1);
    changes.changed().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_ne!(cart.load().unwrap().serial(), first.serial());
}
