//! Addresses of workloads that the mesh knows by name alone, from the system's resolver.
//!
//! The resolver runs on the agent's own runtime: a worker thread stands in some pod's network namespace,
//! and its questions would leave from there.
use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{Instant, timeout},
};

/// How long an answer is used. The system's resolver does not tell how long it may be.
const ANSWER_KEPT: Duration = Duration::from_secs(30);
/// How long a failure is taken for the answer.
const FAILURE_KEPT: Duration = Duration::from_secs(2);
/// How long one connection waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Names whose answers are kept.
const MAX_NAMES: usize = 4096;
/// Questions that are asked at a time; each takes a thread until the system's resolver gives up.
const MAX_QUESTIONS: usize = 32;

/// Why a name has no address.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NameError {
    /// The resolver says so, or cannot be asked.
    #[error("cannot resolve {host}: {error}")]
    Failed {
        host: Arc<str>,
        error: Arc<io::Error>,
    },
    /// The name has no address at all.
    #[error("{host} has no address")]
    Empty { host: Arc<str> },
    /// No answer in time.
    #[error("cannot resolve {host}: no answer within {seconds} s", seconds = ANSWER_TIMEOUT.as_secs())]
    Timeout { host: Arc<str> },
    /// Too many names are in use.
    #[error(
        "cannot resolve {host}: {MAX_NAMES} names are in use already; give workloads addresses"
    )]
    TooMany { host: Arc<str> },
}

type Answer = Result<Arc<[IpAddr]>, NameError>;

/// Asks for the addresses of a name.
pub(crate) type Lookup =
    Box<dyn Fn(Arc<str>) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Resolves names and remembers the answers, for all workers.
pub(crate) struct Names {
    runtime: Handle,
    lookup: Lookup,
    questions: Arc<Semaphore>,
    known: Mutex<HashMap<Arc<str>, Entry>>,
}

struct Entry {
    asked: Instant,
    answer: Shared<BoxFuture<'static, Answer>>,
}

impl Entry {
    fn is_fresh(&self, now: Instant) -> bool {
        let kept = match self.answer.peek() {
            Some(Err(_)) => FAILURE_KEPT,
            Some(Ok(_)) | None => ANSWER_KEPT,
        };
        now.duration_since(self.asked) < kept
    }
}

impl Names {
    /// Asks the system's resolver, from `runtime`.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self::with(runtime, Box::new(|host| system(host).boxed()))
    }

    fn with(runtime: Handle, lookup: Lookup) -> Self {
        Self {
            runtime,
            lookup,
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            known: Mutex::default(),
        }
    }

    /// All addresses of a name, at least one. Those who ask for one name at a time share a question.
    pub(crate) async fn resolve(&self, host: &Arc<str>) -> Answer {
        let answer = self.answer(host)?;
        let late = || {
            Err(NameError::Timeout {
                host: Arc::clone(host),
            })
        };
        timeout(ANSWER_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| late())
    }

    fn answer(&self, host: &Arc<str>) -> Result<Shared<BoxFuture<'static, Answer>>, NameError> {
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = known.get(host).filter(|entry| entry.is_fresh(now)) {
            return Ok(entry.answer.clone());
        }
        if known.len() >= MAX_NAMES {
            known.retain(|_, entry| entry.is_fresh(now));
        }
        if known.len() >= MAX_NAMES {
            return Err(NameError::TooMany {
                host: Arc::clone(host),
            });
        }
        let answer = self.ask(Arc::clone(host)).boxed().shared();
        let entry = Entry {
            asked: now,
            answer: answer.clone(),
        };
        known.insert(Arc::clone(host), entry);
        Ok(answer)
    }

    /// Asks in a task of its own, so that the question outlives whoever asked first.
    fn ask(&self, host: Arc<str>) -> impl Future<Output = Answer> + Send + use<> {
        let (lookup, questions) = (
            (self.lookup)(Arc::clone(&host)),
            Arc::clone(&self.questions),
        );
        let question = self.runtime.spawn(async move {
            let _turn = questions.acquire().await.map_err(io::Error::other)?;
            lookup.await
        });
        async move {
            let answer = question.await.map_err(io::Error::other).flatten();
            match answer {
                Ok(addresses) if addresses.is_empty() => Err(NameError::Empty { host }),
                Ok(addresses) => Ok(addresses.iter().map(IpAddr::to_canonical).collect()),
                Err(error) => Err(NameError::Failed {
                    host,
                    error: Arc::new(error),
                }),
            }
        }
    }
}

async fn system(host: Arc<str>) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((&*host, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A resolver that knows every name but `gone`, and counts its questions.
    fn names() -> (Names, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let lookup = move |host: Arc<str>| {
            counter.fetch_add(1, Ordering::Relaxed);
            let answer = match &*host {
                "gone" => Err(io::ErrorKind::NotFound.into()),
                "empty" => Ok(Vec::new()),
                _ => Ok(vec!["::ffff:192.0.2.1".parse().unwrap()]),
            };
            std::future::ready(answer).boxed()
        };
        (Names::with(Handle::current(), Box::new(lookup)), count)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_serves_until_it_is_old() {
        let (names, count) = names();
        let expected: Arc<[IpAddr]> = Arc::from(["192.0.2.1".parse().unwrap()]);
        for _ in 0..3 {
            assert_eq!(names.resolve(&"db".into()).await.unwrap(), expected);
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
        tokio::time::advance(ANSWER_KEPT).await;
        names.resolve(&"db".into()).await.unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_soon_asked_again() {
        let (names, count) = names();
        for host in ["gone", "empty"] {
            names.resolve(&host.into()).await.unwrap_err();
            names.resolve(&host.into()).await.unwrap_err();
        }
        assert_eq!(count.load(Ordering::Relaxed), 2);
        tokio::time::advance(FAILURE_KEPT).await;
        names.resolve(&"gone".into()).await.unwrap_err();
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let silent = Box::new(|_| std::future::pending().boxed());
        let names = Names::with(Handle::current(), silent);
        let error = names.resolve(&"db".into()).await.unwrap_err();
        assert!(matches!(error, NameError::Timeout { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_names_are_kept() {
        let (names, _) = names();
        for index in 0..MAX_NAMES {
            names.resolve(&format!("db{index}").into()).await.unwrap();
        }
        let error = names.resolve(&"one-more".into()).await.unwrap_err();
        assert!(matches!(error, NameError::TooMany { .. }));
        tokio::time::advance(ANSWER_KEPT).await;
        names.resolve(&"one-more".into()).await.unwrap();
    }

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let names = Names::new(Handle::current());
        let addresses = names.resolve(&"localhost".into()).await.unwrap();
        assert!(addresses.iter().all(IpAddr::is_loopback));
    }
}
