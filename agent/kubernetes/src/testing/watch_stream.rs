//! The stream of a watch: changes from a version on, bookmarks, and how it ends.
use std::{borrow::Cow, collections::VecDeque, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, stream};
use hyper::body::Frame;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{
    Shared, kinds::KindInfo, record::Event, request::Query, selector::Selector, status::Status,
    store::Store, view::View,
};

/// How long a watch lasts when the client sets no bound.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// A watch in progress.
pub(super) struct Watch {
    shared: Arc<Shared>,
    kind: Arc<KindInfo>,
    namespace: Option<String>,
    selector: Selector,
    view: View,
    bookmarks: bool,
    /// The version up to which changes were sent.
    position: u64,
    pending: VecDeque<Bytes>,
    ended: bool,
    deadline: Instant,
    revision: watch::Receiver<u64>,
    cut: watch::Receiver<u64>,
    bookmark: watch::Receiver<u64>,
    _count: Counted,
}

/// A change as it is sent.
#[derive(Serialize)]
struct Line<'o> {
    #[serde(rename = "type")]
    kind: &'static str,
    object: Cow<'o, Value>,
}

/// Counts a watch as open while it lives.
struct Counted(Arc<Shared>, String);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.watches.send_modify(|open| {
            if let Some(count) = open.get_mut(&self.1) {
                *count -= 1;
            }
        });
    }
}

impl Watch {
    pub fn open(
        shared: &Arc<Shared>,
        kind: Arc<KindInfo>,
        namespace: Option<String>,
        query: &Query,
        view: View,
    ) -> Result<Self, Status> {
        let store = shared.store();
        let initial = query.is_set("sendInitialEvents");
        if initial && query.text("resourceVersionMatch") != "NotOlderThan" {
            let message = "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                           resourceVersionMatch to NotOlderThan";
            return Err(Status::invalid(message.to_owned()));
        }
        let from = query.number("resourceVersion")?.unwrap_or(0);
        let timeout = query.seconds("timeoutSeconds")?.unwrap_or(DEFAULT_TIMEOUT);
        let plural = kind.plural.clone();
        let mut watch = Self {
            shared: shared.clone(),
            namespace,
            selector: query.selector()?,
            view,
            bookmarks: query.is_set("allowWatchBookmarks"),
            position: from,
            pending: VecDeque::new(),
            ended: false,
            deadline: Instant::now() + timeout,
            revision: shared.revision.subscribe(),
            cut: shared.cut.subscribe(),
            bookmark: shared.bookmark.subscribe(),
            kind,
            _count: Counted(shared.clone(), plural.clone()),
        };
        shared
            .watches
            .send_modify(|open| *open.entry(plural).or_default() += 1);
        if from == 0 || initial {
            watch.begin_with_everything(&store, initial);
        } else if let Err(status) = store.check_start(from) {
            watch.fail(&status);
        }
        Ok(watch)
    }

    /// The frames of the answer's body.
    pub fn frames(self) -> impl Stream<Item = Result<Frame<Bytes>, io::Error>> {
        stream::unfold(Some(self), |watch| async move {
            let mut watch = watch?;
            match watch.next().await {
                Ok(Some(line)) => Some((Ok(Frame::data(line)), Some(watch))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    fn begin_with_everything(&mut self, store: &Store, initial: bool) {
        for object in store.list(&self.kind, self.namespace.as_deref()) {
            if self.selector.matches(&object) {
                self.push("ADDED", &object);
            }
        }
        self.position = store.revision();
        if initial && self.bookmarks {
            self.push_bookmark(json!({ "k8s.io/initial-events-end": "true" }));
        }
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            self.revision.mark_unchanged();
            self.read_changes();
            if !self.pending.is_empty() || self.ended {
                continue;
            }
            tokio::select! {
                Ok(()) = self.revision.changed() => {}
                Ok(()) = self.cut.changed() => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok(()) = self.bookmark.changed() => self.push_bookmark(json!({})),
                () = tokio::time::sleep_until(self.deadline) => {
                    self.push_bookmark(json!({}));
                    self.ended = true;
                }
            }
        }
    }

    fn read_changes(&mut self) {
        let shared = self.shared.clone();
        let store = shared.store();
        match store.events_after(self.position) {
            Ok(events) => {
                for event in events {
                    self.push_event(event);
                }
                self.position = store.revision();
            }
            Err(status) => self.fail(&status),
        }
        let (group, plural) = (&self.kind.group, &self.kind.plural);
        let known = |it: &Arc<KindInfo>| it.group == *group && it.plural == *plural;
        self.ended |= !store.kinds().iter().any(known);
    }

    /// An object that enters the selection is added, one that leaves it is deleted.
    fn push_event(&mut self, event: &Event) {
        let here = event.key.group == self.kind.group
            && event.key.plural == self.kind.plural
            && self
                .namespace
                .as_ref()
                .is_none_or(|it| *it == event.key.namespace);
        if !here {
            return;
        }
        let before = event.before.as_ref();
        let was = before.is_some_and(|object| self.selector.matches(object));
        let is = !event.deleted && self.selector.matches(&event.after);
        match (was, is) {
            (false, true) => self.push("ADDED", &event.after),
            (true, true) => self.push("MODIFIED", &event.after),
            (true, false) => {
                // The last state that was selected, with the version of the change.
                let mut last = before.map_or(Value::Null, |object| (**object).clone());
                last["metadata"]["resourceVersion"] = json!(event.revision.to_string());
                self.push("DELETED", &last);
            }
            (false, false) => {}
        }
    }

    fn push(&mut self, kind: &'static str, object: &Value) {
        let object = self.view.object(object);
        let line = Line { kind, object };
        let mut text = serde_json::to_vec(&line).expect("JSON");
        text.push(b'\n');
        self.pending.push_back(Bytes::from(text));
    }

    fn push_bookmark(&mut self, annotations: Value) {
        if !self.bookmarks {
            return;
        }
        let object = json!({ "metadata": {
            "resourceVersion": self.position.to_string(),
            "creationTimestamp": null,
            "annotations": annotations,
        } });
        let object = self.view.stamped(&self.kind, object);
        self.push_line(json!({ "type": "BOOKMARK", "object": object }));
    }

    fn fail(&mut self, status: &Status) {
        self.push_line(json!({ "type": "ERROR", "object": status.to_json() }));
        self.ended = true;
    }

    fn push_line(&mut self, line: Value) {
        self.pending.push_back(Bytes::from(format!("{line}\n")));
    }
}
