//! Files of YAML or JSON: split into documents, each with its line, so that one cannot spoil another.
use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{
    path::{Path, Step},
    value::{KeyText, Value},
};

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    /// The file, relative to the directory that is read.
    pub file: Arc<str>,
    /// The line of the file where `text` begins, from 1.
    pub line: usize,
    /// The document's text.
    pub text: String,
    /// Lines that were searched for, by path.
    located: Mutex<BTreeMap<String, usize>>,
}

/// Most text that is gone through, for one document, in search of lines. A search goes through the whole text,
/// and a List can hold a hundred thousand mistakes.
const MAX_SEARCHED_BYTES: usize = 64 << 20;
/// Most lines of one document that are searched for; findings beyond it are given the document's own line.
const MAX_LOCATED: usize = 10_000;

/// Why a document is not data, and on which line of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line in the file, from 1.
    pub line: usize,
    /// The parser's words, without its position.
    pub message: String,
}

impl Document {
    /// Parses the text.
    ///
    /// # Errors
    /// When the text is not YAML (JSON is YAML too), or goes beyond the limits of [`Value::read`].
    pub fn parse(&self) -> Result<Value, SyntaxError> {
        Value::read(serde_norway::Deserializer::from_str(&self.text)).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            SyntaxError {
                line: self.in_file(line),
                message: without_position(&error.to_string()),
            }
        })
    }

    /// The line in the file of the field at `path`, or of the nearest field above it that exists.
    pub fn line_of(&self, path: &Path) -> usize {
        let mut located = self.located.lock().unwrap_or_else(PoisonError::into_inner);
        let name = path.to_string();
        if let Some(line) = located.get(&name) {
            return *line;
        }
        let affordable = (MAX_SEARCHED_BYTES / self.text.len().max(1)).min(MAX_LOCATED);
        if located.len() >= affordable {
            return self.line;
        }
        let line = self.search(path.steps());
        located.insert(name, line);
        line
    }

    fn search(&self, steps: &[Step]) -> usize {
        (0..=steps.len())
            .rev()
            .find_map(|length| find(&self.text, &steps[..length]))
            .map_or(self.line, |line| self.in_file(line))
    }

    /// The line of the file of a line of the text, from 1; the parser may point past the end.
    fn in_file(&self, line: usize) -> usize {
        self.line + line.clamp(1, lines(&self.text)) - 1
    }
}

/// How many lines a text has, at least one. They end as in YAML 1.2, section 5.4: a carriage return alone counts, too.
fn lines(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends = bytes.iter().enumerate().filter(|(at, byte)| match byte {
        b'\n' => true,
        b'\r' => bytes.get(at + 1) != Some(&b'\n'),
        _ => false,
    });
    let is_open = !text.ends_with(['\n', '\r']);
    (ends.count() + usize::from(is_open)).max(1)
}

/// serde_norway ends its messages in `at line 3 column 7`, which counts from the document's start.
fn without_position(message: &str) -> String {
    let end = message.find(" at line ").unwrap_or(message.len());
    let (cause, context) = message.split_at(end);
    // "did not find X at line 2 column 1, while parsing Y at line 1 column 1"
    match context.find(", while ") {
        Some(position) => {
            let context = &context[position..];
            let end = context.find(" at line ").unwrap_or(context.len());
            format!("{cause}{}", &context[..end])
        }
        None => cause.to_owned(),
    }
}

/// Splits a file into documents at the lines `---` and `...`; documents of comments alone are left out.
pub fn split(file: &Arc<str>, text: &str) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut current = Draft::new(1);
    for (position, line) in text.split_inclusive('\n').enumerate() {
        let number = position + 1;
        if is_marker(line, "---") && !current.is_header() {
            documents.extend(std::mem::replace(&mut current, Draft::new(number)).finish(file));
        }
        if is_marker(line, "...") {
            documents.extend(std::mem::replace(&mut current, Draft::new(number + 1)).finish(file));
            continue;
        }
        current.push(line);
    }
    documents.extend(current.finish(file));
    documents
}

/// Whether a line is a document marker (YAML 1.2, section 9.1.2): alone, or followed by white space.
fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// A document under construction.
struct Draft {
    line: usize,
    text: String,
    started: bool,
    has_content: bool,
}

impl Draft {
    fn new(line: usize) -> Self {
        Self {
            line,
            text: String::new(),
            started: false,
            has_content: false,
        }
    }

    /// Whether there is nothing yet but comments and directives, which belong to the marker below them.
    fn is_header(&self) -> bool {
        !self.started && !self.has_content
    }

    fn push(&mut self, line: &str) {
        let marker = is_marker(line, "---");
        let content = if marker {
            line[3..].trim()
        } else {
            line.trim()
        };
        self.started |= marker;
        let is_directive = !self.started && line.starts_with('%');
        self.has_content |= !content.is_empty() && !content.starts_with('#') && !is_directive;
        self.text.push_str(line);
    }

    fn finish(self, file: &Arc<str>) -> Option<Document> {
        self.has_content.then(|| Document {
            file: file.clone(),
            line: self.line,
            text: self.text,
            located: Mutex::default(),
        })
    }
}

/// The line, from 1, of the field at `steps`. The parser tells positions only in errors, so the search ends in
/// one on purpose when it is there.
fn find(text: &str, steps: &[Step]) -> Option<usize> {
    let found = Cell::new(false);
    let search = Search {
        steps,
        found: &found,
    };
    let error = search
        .deserialize(serde_norway::Deserializer::from_str(text))
        .err()?;
    found
        .get()
        .then(|| error.location().map_or(1, |at| at.line()))
}

/// Goes down the steps, and fails at the last key, item, or the document itself, with `found` set.
#[derive(Clone, Copy)]
struct Search<'a> {
    steps: &'a [Step],
    found: &'a Cell<bool>,
}

impl Search<'_> {
    fn stop<E: Error>(self) -> E {
        self.found.set(true);
        E::custom("the search is over")
    }

    fn scalar<E: Error>(self) -> Result<(), E> {
        if self.steps.is_empty() {
            Err(self.stop())
        } else {
            Ok(())
        }
    }
}

impl<'de> DeserializeSeed<'de> for Search<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Search<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.steps.split_first() else {
            return Err(self.stop());
        };
        let Step::Key(wanted) = step else {
            return Ok(());
        };
        while let Some(matched) = map.next_key_seed(SearchKey {
            wanted,
            search: Self {
                steps: rest,
                ..self
            },
        })? {
            if matched {
                return map.next_value_seed(Self {
                    steps: rest,
                    ..self
                });
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.steps.split_first() else {
            return Err(self.stop());
        };
        let Step::Index(wanted) = step else {
            return Ok(());
        };
        for _ in 0..*wanted {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(Self {
            steps: rest,
            ..self
        })
        .map(|_| ())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar()
    }
}

/// Compares a key; `search` is what is left to do below it, and is over when that is nothing.
struct SearchKey<'a> {
    wanted: &'a str,
    search: Search<'a>,
}

impl<'de> DeserializeSeed<'de> for SearchKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SearchKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        KeyText.expecting(f)
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.search.steps.is_empty() => Err(self.search.stop()),
            matched => Ok(matched),
        }
    }

    fn visit_bool<E: Error>(self, key: bool) -> Result<bool, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_i64<E: Error>(self, key: i64) -> Result<bool, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_u64<E: Error>(self, key: u64) -> Result<bool, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_f64<E: Error>(self, key: f64) -> Result<bool, E> {
        self.visit_str(&key.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_text(text: &str) -> Vec<(usize, String)> {
        split(&Arc::from("f.yaml"), text)
            .into_iter()
            .map(|d| (d.line, d.text))
            .collect()
    }

    fn line_of(text: &str, path: &Path) -> usize {
        split(&Arc::from("f.yaml"), text)[0].line_of(path)
    }

    #[test]
    fn splits_at_markers_and_keeps_lines() {
        let documents =
            split_text("# head\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\nc: 3\n--- {d: 4}\n");
        let lines: Vec<usize> = documents.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 6, 9, 10]);
    }

    #[test]
    fn no_line_is_past_the_end() {
        for (text, line) in [("\r---", 2), ("a: 1\n\r\n", 1), ("\r\n\r[]", 3)] {
            assert_eq!(line_of(text, &Path::root()), line, "{text:?}");
        }
    }

    #[test]
    fn directives_and_windows_line_ends_are_taken() {
        let documents = split(
            &Arc::from("f"),
            "%YAML 1.1\r\n---\r\na: 1\r\n---\r\nb: 2\r\n",
        );
        assert_eq!(documents.len(), 2);
        assert_eq!(
            documents[0].parse().unwrap().get("a"),
            Some(&Value::Integer(1))
        );
        assert_eq!(
            documents[1].parse().unwrap().get("b"),
            Some(&Value::Integer(2))
        );
    }

    #[test]
    fn a_rule_inside_a_text_is_no_marker() {
        assert_eq!(split_text("a: |\n  x\n  ---\n  y\n").len(), 1);
        assert_eq!(split_text("a: 1\n---b\n").len(), 1);
    }

    #[test]
    fn finds_fields_by_their_whole_path() {
        let text = "---\n# port\nmetadata:\n  name: x\nspec:\n  name: y\n  list:\n  - port: 1\n  - a: b\n    port: 2\n";
        let spec = Path::root().key("spec");
        assert_eq!(line_of(text, &Path::root()), 3);
        assert_eq!(line_of(text, &spec), 5);
        assert_eq!(line_of(text, &spec.key("name")), 6);
        assert_eq!(line_of(text, &spec.key("list").index(0).key("port")), 8);
        assert_eq!(line_of(text, &spec.key("list").index(1).key("port")), 10);
        assert_eq!(line_of(text, &spec.key("list").index(1)), 9);
        assert_eq!(line_of(text, &spec.key("list").index(7)), 7);
        assert_eq!(line_of(text, &spec.key("missing")), 5);
    }

    #[test]
    fn finds_fields_in_json_and_behind_numeric_keys() {
        assert_eq!(
            line_of(
                "{\n \"a\": {\n  \"b\": 1\n }\n}\n",
                &Path::root().key("a").key("b")
            ),
            3
        );
        assert_eq!(
            line_of(
                "a:\n  80:\n    mode: X\n",
                &Path::root().key("a").key("80").key("mode")
            ),
            3
        );
    }

    #[test]
    fn searches_in_a_huge_document_are_limited() {
        let text = format!("a: 1\nb: {}\n", "x".repeat(MAX_SEARCHED_BYTES / 4));
        let documents = split(&Arc::from("f"), &text);
        let lines: Vec<usize> = (0..6)
            .map(|index| documents[0].line_of(&Path::root().key("b").index(index)))
            .collect();
        assert_eq!(lines, [2, 2, 2, 1, 1, 1]);
    }

    #[test]
    fn syntax_errors_tell_the_line_of_the_file() {
        let documents = split(&Arc::from("f"), "a: 1\n---\nb: 2\nc: [\n");
        let error = documents[1].parse().unwrap_err();
        assert!(error.line >= 4, "{error:?}");
        assert!(!error.message.contains("at line"), "{error:?}");
    }
}
