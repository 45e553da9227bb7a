//! What is wrong with a document, where, and what to do about it.
use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

use crate::{path::Path, resources::Key};

/// Longest part of a user's text that a message repeats, in characters.
const MAX_QUOTED: usize = 80;

/// How much of what was written is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Accepted; a part of it has no effect, by design.
    Info,
    /// In force, but not quite as written.
    Warning,
    /// Not in force, in whole or in part.
    Error,
}

/// One finding about one document or object. Written as one line:
/// `file:line: kind namespace/name: field: message; remedy`, without the place for objects of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file, relative to the directory that is read; empty for an object of a cluster.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub file: Arc<str>,
    /// The line in that file, from 1; 0 when the file as a whole is meant, or there is none.
    #[serde(skip_serializing_if = "is_nowhere")]
    pub line: usize,
    /// The object, when its kind and name could be read.
    pub resource: Option<Key>,
    /// The field; the root path means the whole document.
    #[serde(serialize_with = "written")]
    pub field: Path,
    /// What was found.
    pub message: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

fn is_nowhere(line: &usize) -> bool {
    *line == 0
}

fn written<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}", one_line(&self.file))?;
            if self.line > 0 {
                write!(f, ":{}", self.line)?;
            }
            f.write_str(": ")?;
        }
        if let Some(resource) = &self.resource {
            write!(f, "{resource}: ")?;
        }
        if !self.field.is_root() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}", one_line(&self.message))?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", one_line(&self.remedy))?;
        }
        Ok(())
    }
}

/// A user's text in quotes, shortened and with control characters escaped, fit for one line of a log.
pub fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(MAX_QUOTED).flat_map(visible).collect();
    if text.chars().nth(MAX_QUOTED).is_some() {
        quoted.push('…');
    }
    format!("'{quoted}'")
}

fn one_line(text: &str) -> String {
    text.chars().flat_map(visible).collect()
}

/// A character as it is, or escaped when it would move the cursor of a terminal.
fn visible(character: char) -> Box<dyn Iterator<Item = char>> {
    if character.is_control() {
        Box::new(character.escape_default())
    } else {
        Box::new(std::iter::once(character))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_line_whatever_the_user_wrote() {
        let diagnostic = Diagnostic {
            severity: Severity::Error,
            file: Arc::from("a\nb.yaml"),
            line: 3,
            resource: None,
            field: Path::root().key("kind"),
            message: format!("{} is unknown", quote("x\u{1b}[2J\n")),
            remedy: "write Pod".to_owned(),
        };
        assert_eq!(
            diagnostic.to_string(),
            "a\\nb.yaml:3: kind: 'x\\u{1b}[2J\\n' is unknown; write Pod"
        );
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(quote(&"a".repeat(500)).chars().count(), MAX_QUOTED + 3);
    }

    #[test]
    fn serializes_the_field_as_text() {
        let diagnostic = Diagnostic {
            severity: Severity::Info,
            file: Arc::from("a.yaml"),
            line: 1,
            resource: None,
            field: Path::root().key("spec").index(0),
            message: "m".to_owned(),
            remedy: String::new(),
        };
        let json = serde_json::to_value(&diagnostic).unwrap();
        assert_eq!(json["field"], "spec[0]");
        assert_eq!(json["severity"], "info");
    }
}
