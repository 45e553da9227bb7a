//! The two forms of a log line, and the escaping that both need.
use std::{
    fmt::{self, Display, Write},
    str::FromStr,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

/// RFC 3339, UTC, microseconds.
const TIME: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Tab-separated head, then `key=value`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A word that is not a log format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a log format; use text or json")]
pub struct FormatError(String);

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(FormatError(other.to_owned())),
        }
    }
}

impl Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// `at` as RFC 3339 with microseconds; the epoch when the clock is outside what the form can hold.
pub fn timestamp(at: SystemTime) -> String {
    OffsetDateTime::from(at)
        .format(TIME)
        .unwrap_or_else(|_| "1970-01-01T00:00:00.000000Z".to_owned())
}

/// Builds one line of either form, field by field.
pub(crate) struct Line {
    format: Format,
    text: String,
    first: bool,
}

impl Line {
    pub(crate) fn new(
        format: Format,
        at: SystemTime,
        level: &str,
        scope: &str,
        message: &str,
    ) -> Self {
        let time = timestamp(at);
        let mut text = String::with_capacity(512);
        match format {
            Format::Text => {
                push(
                    &mut text,
                    format_args!("{time}\t{level}\t{scope}\t{}", OneLine(message)),
                );
            }
            Format::Json => {
                let (scope, message) = (Json(scope), Json(message));
                let head = format_args!(
                    r#"{{"level":"{level}","time":"{time}","scope":{scope},"message":{message}"#
                );
                push(&mut text, head);
            }
        }
        Self {
            format,
            text,
            first: true,
        }
    }

    /// A string, quoted and escaped in both forms.
    pub(crate) fn quoted(&mut self, key: &str, value: &str) {
        match self.format {
            Format::Text => self.put(key, format_args!("{value:?}")),
            Format::Json => self.put(key, format_args!("{}", Json(value))),
        }
    }

    /// A string that the text form shows bare, if it has nothing in it that could forge another field.
    pub(crate) fn bare(&mut self, key: &str, value: &str) {
        let harmless = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'=';
        if self.format == Format::Text && !value.is_empty() && value.bytes().all(harmless) {
            self.put(key, format_args!("{value}"));
        } else {
            self.quoted(key, value);
        }
    }

    /// A number, bare in both forms.
    pub(crate) fn number(&mut self, key: &str, value: impl Display) {
        self.put(key, format_args!("{value}"));
    }

    pub(crate) fn finish(mut self) -> String {
        if self.format == Format::Json {
            self.text.push('}');
        }
        self.text.push('\n');
        self.text
    }

    fn put(&mut self, key: &str, value: fmt::Arguments<'_>) {
        match self.format {
            Format::Text => {
                let separator = if self.first { '\t' } else { ' ' };
                push(&mut self.text, format_args!("{separator}{key}={value}"));
            }
            Format::Json => push(&mut self.text, format_args!(",{}:{value}", Json(key))),
        }
        self.first = false;
    }
}

/// Writing to a `String` cannot fail.
fn push(text: &mut String, arguments: fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

/// Shows control characters escaped, so that a message stays one line.
struct OneLine<'a>(&'a str);

impl Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// Shows a string as a JSON string (RFC 8259, section 7).
struct Json<'a>(&'a str);

impl Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '\t' => f.write_str("\\t")?,
                '\r' => f.write_str("\\r")?,
                other if other.is_control() => write!(f, "\\u{:04x}", u32::from(other))?,
                other => f.write_char(other)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_another_line_or_field() {
        let mut line = Line::new(
            Format::Text,
            SystemTime::UNIX_EPOCH,
            "info",
            "access",
            "a\nb",
        );
        line.bare("dst.hbone_addr", "x y=\"1\"\nz");
        let text = line.finish();
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000000Z\tinfo\taccess\ta\\nb\tdst.hbone_addr=\"x y=\\\"1\\\"\\nz\"\n"
        );
    }

    #[test]
    fn json_lines_parse_whatever_they_carry() {
        let mut line = Line::new(Format::Json, SystemTime::UNIX_EPOCH, "info", "access", "m");
        line.quoted("error", "tab\t quote\" back\\ nul\0 new\n\u{7f}");
        line.number("bytes_sent", 7);
        let value: serde_json::Value = serde_json::from_str(&line.finish()).unwrap();
        assert_eq!(value["error"], "tab\t quote\" back\\ nul\0 new\n\u{7f}");
        assert_eq!(value["bytes_sent"], 7);
    }
}
