//! The program's log: tracing events as lines in Istio's form, with levels that change at run time.
use std::{fmt, time::SystemTime};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use crate::{
    format::{Format, Line},
    output::Output,
};

/// Longest text of level directives, in bytes.
pub const MAX_DIRECTIVES: usize = 1024;

/// Why the level was not set.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The directives are longer than [`MAX_DIRECTIVES`].
    #[error("log directives of {0} bytes are longer than {MAX_DIRECTIVES}; name fewer targets")]
    Length(usize),
    /// The directives cannot be read.
    #[error(
        "'{directives}' are not log directives ({reason}); write a level or target=level, joined by commas"
    )]
    Directives {
        /// What was given.
        directives: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logging is started once a process.
    #[error("logging was started before: {0}")]
    Started(String),
    /// The log's subscriber is gone.
    #[error("the log can no longer be changed: {0}; restart the node")]
    Gone(#[from] reload::Error),
}

/// The running log.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Logging {
    /// Sends all tracing events of the process that pass `directives` to `output`.
    ///
    /// # Errors
    /// When the directives cannot be read, or logging has been started already.
    pub fn start(output: Output, format: Format, directives: &str) -> Result<Self, LoggingError> {
        let (filter, handle) = reload::Layer::new(parse(directives)?);
        let lines = tracing_subscriber::fmt::layer()
            .event_format(Lines(format))
            .with_writer(output);
        tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .try_init()
            .map_err(|error| LoggingError::Started(error.to_string()))?;
        Ok(Self { filter: handle })
    }

    /// Replaces the directives, for example `info,tunnel=debug,access=off`.
    ///
    /// # Errors
    /// When the directives cannot be read; the old ones stay.
    pub fn set_level(&self, directives: &str) -> Result<(), LoggingError> {
        Ok(self.filter.reload(parse(directives)?)?)
    }

    /// The directives in force.
    pub fn level(&self) -> String {
        self.filter
            .with_current(ToString::to_string)
            .unwrap_or_default()
    }
}

fn parse(directives: &str) -> Result<EnvFilter, LoggingError> {
    if directives.len() > MAX_DIRECTIVES {
        return Err(LoggingError::Length(directives.len()));
    }
    EnvFilter::builder()
        .parse(qualified(directives))
        .map_err(|error| LoggingError::Directives {
            directives: directives.to_owned(),
            reason: error.to_string(),
        })
}

/// Lets a directive name a room as the log does: `tunnel=debug` means `undermesh_tunnel=debug`.
fn qualified(directives: &str) -> String {
    const ROOMS: [&str; 6] = [
        "capture",
        "control",
        "identity",
        "model",
        "telemetry",
        "tunnel",
    ];
    let qualify = |directive: &str| {
        let directive = directive.trim();
        let room = directive.split(['=', ':', '[']).next().unwrap_or_default();
        if ROOMS.contains(&room) {
            format!("undermesh_{directive}")
        } else {
            directive.to_owned()
        }
    };
    directives
        .split(',')
        .map(qualify)
        .collect::<Vec<_>>()
        .join(",")
}

/// Events as [`Line`]s.
struct Lines(Format);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let level = metadata.level().as_str().to_ascii_lowercase();
        let scope = scope(metadata.target());
        let mut line = Line::new(self.0, SystemTime::now(), &level, scope, &fields.message);
        for (name, value) in &fields.others {
            line.quoted(name, value);
        }
        writer.write_str(&line.finish())
    }
}

/// The target as the log shows it: without the crate's prefix.
fn scope(target: &str) -> &str {
    let target = target.strip_prefix("undermesh").unwrap_or(target);
    match target.trim_start_matches(['_', ':']) {
        "" => "undermesh",
        scope => scope,
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name if name.starts_with("log.") => {}
            name => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::Captured;

    #[test]
    fn an_event_is_one_line_with_its_fields() {
        let sink = Captured::default();
        let (output, thread) = Output::start(Format::Text, sink.clone()).unwrap();
        let lines = tracing_subscriber::fmt::layer()
            .event_format(Lines(Format::Text))
            .with_writer(output);
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "undermesh_tunnel::pool", peer = "a\nb", count = 2, "two\tthings");
        });
        drop(thread);
        let text = sink.text();
        let rest = text.split_once('\t').unwrap().1;
        assert_eq!(
            rest,
            "warn\ttunnel::pool\ttwo\\tthings\tpeer=\"a\\nb\" count=\"2\"\n"
        );
    }

    #[test]
    fn rooms_are_named_as_the_log_names_them() {
        assert_eq!(
            qualified("info, tunnel::pool=debug,h2=off"),
            "info,undermesh_tunnel::pool=debug,h2=off"
        );
        assert!(parse("tunnel=debug,access=off").is_ok());
        assert!(matches!(
            parse("tunnel=loud"),
            Err(LoggingError::Directives { .. })
        ));
        assert!(matches!(
            parse(&"a".repeat(2000)),
            Err(LoggingError::Length(2000))
        ));
    }
}
