//! The client's task: keeps a stream open, hands responses to the session, publishes what changed, keeps the cache.
use std::{
    collections::VecDeque,
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use rand::rngs::StdRng;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    backoff::Backoff,
    batch::{Answer, Batch},
    cache::{self, Loaded, Saved},
    counters::Termination,
    interest::{Interests, Phase},
    options::Options,
    session::{Asked, Outcome},
    shared::{Shared, State},
    transport::{self, Stream, StreamError},
    writer::Writer,
};
use crate::{
    decode::Decoder,
    health::Health,
    wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

/// Longest time that a state is withheld because a workload names a policy that has not come.
pub const TORN_GRACE: Duration = Duration::from_millis(500);
/// Shortest time between two writes of the cache.
pub const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// Most bytes of the cache that are written in a second, on average: a large mesh that changes all the time is kept
/// less often, instead of wearing the disk.
pub const SAVE_BYTES_PER_SECOND: u64 = 256 * 1024;
/// How long a server's first answer may pause before it counts as whole. It matters only where what is known did
/// not fit in the first request.
pub const SWEEP_QUIET: Duration = Duration::from_secs(5);
/// Requests that wait for the connection before no more responses are read.
const MAX_OUTBOX: usize = 64;

/// The task's own.
pub(super) struct Driver {
    options: Arc<Options>,
    shared: Arc<Shared>,
    interests: Option<Arc<Interests>>,
    decoder: Decoder,
    rng: StdRng,
    writer: Option<Writer>,
    health: watch::Receiver<Option<Health>>,
    due: Due,
}

/// What is to be done later.
#[derive(Debug, Default)]
struct Due {
    publish: Option<Instant>,
    sweep: Option<Instant>,
    save: Option<Instant>,
}

impl Due {
    fn next(&self) -> Option<Instant> {
        [self.publish, self.sweep, self.save]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Driver {
    pub(super) fn new(
        options: Arc<Options>,
        shared: Arc<Shared>,
        interests: Option<Arc<Interests>>,
        rng: StdRng,
    ) -> Self {
        let writer = options.cache.clone().map(Writer::start);
        Self {
            decoder: Decoder::new(Arc::clone(&options.network)),
            health: shared.health.subscribe(),
            options,
            shared,
            interests,
            rng,
            writer,
            due: Due::default(),
        }
    }

    /// Runs until `stop` says so or its sender is gone; then the state is kept a last time.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        if let Some(path) = self.options.cache.clone() {
            self.restore(path).await;
        }
        tokio::select! {
            () = self.follow() => {}
            // It fails when the last handle is gone.
            _ = stop.wait_for(|stop| *stop) => {}
        }
        self.shared.connected.send_replace(false);
        if self.due.save.is_some() {
            self.save();
        }
        if let Some(writer) = self.writer.take() {
            writer.finish().await;
        }
    }

    async fn follow(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let ended = self.stream().await;
            self.disconnected(&ended);
            let wait = backoff.ended(started.elapsed(), &mut self.rng);
            self.attending(tokio::time::sleep(wait)).await;
        }
    }

    /// One stream, from the first request to its end.
    async fn stream(&mut self) -> StreamError {
        let first = self.first_requests();
        let options = Arc::clone(&self.options);
        let mut stream = match self.attending(transport::open(&options, first)).await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        self.connected();
        // Whoever answers now may not know what another was told.
        let mut outbox: VecDeque<_> = self.told_health().into_iter().collect();
        loop {
            if let Err(ended) = self.turn(&mut stream, &mut outbox).await {
                return ended;
            }
        }
    }

    /// Waits for one thing to happen and deals with it.
    async fn turn(
        &mut self,
        stream: &mut Stream,
        outbox: &mut VecDeque<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamError> {
        let interests = self.interests.clone();
        tokio::select! {
            response = stream.responses.message(), if outbox.len() < MAX_OUTBOX => {
                let response = response?.ok_or(StreamError::Complete)?;
                outbox.push_back(self.received(response));
            }
            permit = stream.requests.reserve(), if !outbox.is_empty() => {
                let permit = permit.map_err(|_| StreamError::Complete)?;
                if let Some(request) = outbox.pop_front() {
                    permit.send(request);
                }
            }
            () = news(interests.as_deref()) => outbox.extend(self.ask()),
            // The sender lives in `shared`.
            Ok(()) = self.health.changed() => outbox.extend(self.told_health()),
            () = until(self.due.next()) => self.perform(Instant::now()),
        }
        Ok(())
    }

    /// Waits for `work`, and does what becomes due in the meantime.
    async fn attending<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = until(self.due.next()) => self.perform(Instant::now()),
            }
        }
    }

    /// The message that says how the application is, if that is to be said.
    fn told_health(&mut self) -> Option<DeltaDiscoveryRequest> {
        let health = self.health.borrow_and_update();
        health.as_ref().map(Health::to_request)
    }

    fn first_requests(&mut self) -> [DeltaDiscoveryRequest; 2] {
        // What is forgotten needs no unsubscription: this stream never subscribes to it.
        drop(self.ask());
        let names = self.interests.as_ref().map(|interests| interests.names());
        self.shared.state().session.open(&names.unwrap_or_default())
    }

    /// The request that tells the server what is asked for since the last one, if anything is.
    fn ask(&mut self) -> Option<DeltaDiscoveryRequest> {
        let interests = self.interests.clone()?;
        let news = interests.news();
        if news.is_empty() {
            return None;
        }
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        let request = state.session.ask(&news.added, &news.dropped, &*interests);
        if !news.dropped.is_empty() {
            self.changed(&mut state);
        }
        Some(request)
    }

    fn connected(&mut self) {
        tracing::info!(server = %self.options.address, "the control plane is connected");
        {
            let mut state = self.shared.state();
            state.link.since = SystemTime::now();
            state.link.last_error = None;
        }
        self.shared.connected.send_replace(true);
    }

    fn disconnected(&mut self, ended: &StreamError) {
        let reason = ended.termination();
        self.shared.counters.ended(reason);
        let was_connected = self.shared.connected.send_replace(false);
        {
            let mut state = self.shared.state();
            if was_connected {
                state.link.since = SystemTime::now();
            }
            state.link.last_error = Some(ended.to_string());
        }
        // What the server would have said next cannot be known any more.
        self.due.sweep = None;
        match reason {
            Termination::Reconnect | Termination::Complete => {
                tracing::info!(reason = %ended, "the control plane ended the stream; the last known state stays");
            }
            Termination::ConnectionError | Termination::Error => {
                tracing::warn!(error = %ended, "no control plane; the last known state stays");
            }
        }
    }

    /// Puts a response in force and returns its acknowledgement.
    fn received(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        if let Some(counters) = self.shared.counters.of_type(&response.type_url) {
            counters.received(content_bytes(&response));
        }
        tracing::debug!(
            type_url = response.type_url,
            resources = response.resources.len(),
            removed = response.removed_resources.len(),
            "received"
        );
        let batch = Batch::decode(response, &mut self.decoder);
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        let outcome = state.session.apply(batch);
        self.answer(&outcome, &mut state);
        self.changed(&mut state);
        if state.session.is_unconfirmed() {
            self.due.sweep = Some(Instant::now() + SWEEP_QUIET);
        }
        drop(state);
        if !outcome.rejections.is_empty() {
            self.shared.counters.rejected();
        }
        for rejection in &outcome.rejections {
            tracing::error!(%rejection, "a resource is not taken; its last version stays in force");
        }
        outcome.reply
    }

    /// Notes which questions are answered as soon as what was received is in force.
    fn answer(&self, outcome: &Outcome, state: &mut State) {
        let Some(interests) = &self.interests else {
            return;
        };
        for answer in &outcome.answers {
            match answer {
                Answer::Name(name) => {
                    let interest = interests.get(name);
                    let answered = interest.map(|interest| (interest, Phase::Answered));
                    state.answered.extend(answered);
                }
                Answer::Rejected(name) => {
                    let interest = interests.get(name);
                    let rejected = interest.map(|interest| (interest, Phase::Rejected));
                    state.answered.extend(rejected);
                }
                Answer::Range(network, range) => {
                    let within = interests.within(network, *range).into_iter();
                    state
                        .answered
                        .extend(within.map(|interest| (interest, Phase::Answered)));
                }
            }
        }
    }

    /// Publishes what has changed, at once unless it is torn, and plans to keep it.
    fn changed(&mut self, state: &mut State) {
        let now = Instant::now();
        if self.due.save.is_none() {
            self.due.save = Some(now + self.save_interval());
        }
        state.withheld = state.session.store().is_torn();
        if state.withheld {
            self.due.publish.get_or_insert(now + TORN_GRACE);
        } else {
            self.due.publish = None;
            self.shared.publish();
        }
    }

    fn perform(&mut self, now: Instant) {
        if is_due(&mut self.due.publish, now) {
            self.shared.state().withheld = false;
            self.shared.publish();
        }
        if is_due(&mut self.due.sweep, now) {
            let shared = Arc::clone(&self.shared);
            let mut state = shared.state();
            state.session.sweep();
            self.changed(&mut state);
        }
        if is_due(&mut self.due.save, now) {
            self.save();
        }
    }

    fn save_interval(&self) -> Duration {
        let written = self.writer.as_ref().map_or(0, |it| it.report().bytes);
        SAVE_INTERVAL + Duration::from_secs(written / SAVE_BYTES_PER_SECOND)
    }

    fn save(&mut self) {
        self.due.save = None;
        let Some(writer) = &self.writer else {
            return;
        };
        let asked = self.interests.as_ref().map(|interests| interests.names());
        let mut state = self.shared.state();
        state.link.cache_error = writer.report().error;
        writer.submit(Saved {
            cluster: Arc::clone(&self.options.cluster),
            asked: asked.unwrap_or_default(),
            resources: state.session.held().into(),
        });
    }

    /// Takes up the state of an earlier run.
    async fn restore(&mut self, path: PathBuf) {
        let cluster = Arc::clone(&self.options.cluster);
        let read = tokio::task::spawn_blocking(move || cache::read(&path, &cluster)).await;
        match read {
            Ok(Ok(Some(loaded))) => self.take_up(loaded),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "there is no last known state");
                self.shared.state().link.cache_error = Some(error.to_string());
            }
            // The runtime is going down.
            Err(error) => tracing::debug!(%error, "the cache was not read"),
        }
    }

    fn take_up(&mut self, loaded: Loaded) {
        if let Some(interests) = &self.interests {
            for name in &loaded.asked {
                interests.restore(name);
            }
        }
        let responses = loaded.responses.into_iter();
        let batches: Vec<_> = responses
            .map(|response| Batch::decode(response, &mut self.decoder))
            .collect();
        let mut state = self.shared.state();
        for batch in batches {
            state.session.restore(batch);
        }
        state.link.restored = true;
        let counts = state.session.store().counts();
        drop(state);
        self.shared.publish();
        tracing::info!(
            ?counts,
            "the last known state is in force until the control plane answers"
        );
    }
}

impl Asked for Interests {
    fn name(&self, name: &str) -> bool {
        self.contains(name)
    }

    fn range(&self, network: &str, range: IpNet) -> bool {
        if range.prefix_len() == range.max_prefix_len() {
            return self.contains(&format!("{network}/{}", range.addr()));
        }
        self.contains_within(network, range)
    }
}

fn is_due(at: &mut Option<Instant>, now: Instant) -> bool {
    at.take_if(|at| *at <= now).is_some()
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn news(interests: Option<&Interests>) {
    match interests {
        Some(interests) => interests.changed().await,
        None => std::future::pending().await,
    }
}

fn content_bytes(response: &DeltaDiscoveryResponse) -> u64 {
    let contents = response.resources.iter().flat_map(|it| &it.resource);
    contents.map(|content| content.value.len() as u64).sum()
}
