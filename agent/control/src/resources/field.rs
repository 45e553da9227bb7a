//! Strict reading of fields: every wrong or unknown one is reported with its path, and reading goes on.
use std::{cell::RefCell, collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{names, strings::Strings};
use crate::{
    diagnostic::{Severity, quote},
    path::{Path, Step},
    value::Value,
};

/// Most problems that are kept for one object; the first ones tell enough.
pub const MAX_PROBLEMS: usize = 20;

/// Something wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The field.
    pub path: Path,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Gathers the problems of one object.
#[derive(Debug)]
pub struct Report {
    unknown_field: Option<Severity>,
    strings: Strings,
    problems: RefCell<Vec<Problem>>,
}

impl Report {
    /// A report in which an unknown field counts as `unknown_field`, or not at all. Texts that objects share
    /// come from `strings`.
    pub fn new(unknown_field: Option<Severity>, strings: &Strings) -> Self {
        Self {
            unknown_field,
            strings: strings.clone(),
            problems: RefCell::default(),
        }
    }

    /// Notes a problem. Beyond [`MAX_PROBLEMS`] only an error that is the first of its object is kept.
    pub fn add(
        &self,
        severity: Severity,
        path: &Path,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let is_news = severity == Severity::Error && !self.has_errors();
        let problem = Problem {
            severity,
            path: path.clone(),
            message: message.into(),
            remedy: remedy.into(),
        };
        let mut problems = self.problems.borrow_mut();
        if (problems.len() < MAX_PROBLEMS || is_news) && !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// Whether the object cannot be used as it is.
    pub fn has_errors(&self) -> bool {
        self.problems
            .borrow()
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }

    /// Whether `path` or a field below it is in error.
    pub fn has_errors_in(&self, path: &Path) -> bool {
        let is_below = |problem: &Problem| problem.path.steps().starts_with(path.steps());
        self.problems
            .borrow()
            .iter()
            .any(|problem| problem.severity == Severity::Error && is_below(problem))
    }

    /// Whether an unknown field of the map at `path` was probably meant to be one of `names`.
    pub fn has_misspelt(&self, path: &Path, names: &[&str]) -> bool {
        let depth = path.steps().len();
        self.problems
            .borrow()
            .iter()
            .any(|problem| match problem.path.steps() {
                [above @ .., Step::Key(key)] if above.len() == depth => {
                    above == path.steps()
                        && !names.contains(&&**key)
                        && names::nearest(key, names).is_some()
                }
                _ => false,
            })
    }

    /// The problems, in the order they were found.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// A value with its path.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    value: &'a Value,
    path: Path,
    report: &'a Report,
}

impl<'a> Node<'a> {
    /// The root of a document, or of an item of a list.
    pub fn root(value: &'a Value, report: &'a Report) -> Self {
        Self {
            value,
            path: Path::root(),
            report,
        }
    }

    /// Where this is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What this is.
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// Whether something here or below is in error.
    pub fn has_errors(&self) -> bool {
        self.report.has_errors_in(&self.path)
    }

    /// Reports an error here.
    pub fn error(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.report
            .add(Severity::Error, &self.path, message, remedy);
    }

    /// Reports a warning here.
    pub fn warn(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.report
            .add(Severity::Warning, &self.path, message, remedy);
    }

    /// The fields of a map; those that are not `known` are reported.
    pub fn fields(&self, known: &'static [&'static str]) -> Fields<'a> {
        let fields = self.any_fields();
        let Some(severity) = self.report.unknown_field else {
            return fields;
        };
        for (key, _) in fields
            .entries
            .iter()
            .filter(|(key, _)| !known.contains(&key.as_str()))
        {
            let remedy = match names::nearest(key, known) {
                Some(name) => format!("did you mean '{name}'?"),
                None => "remove it".to_owned(),
            };
            let path = self.path.key(key.clone());
            self.report
                .add(severity, &path, "is not a field of this kind", remedy);
        }
        fields
    }

    /// The fields of a map, whatever their names.
    pub fn any_fields(&self) -> Fields<'a> {
        let entries = match self.value {
            Value::Map(entries) => entries.as_slice(),
            _ => {
                self.expected("a map");
                &[]
            }
        };
        Fields {
            entries,
            node: self.clone(),
        }
    }

    /// The items of a list.
    pub fn items(&self) -> Vec<Node<'a>> {
        let Value::List(items) = self.value else {
            self.expected("a list");
            return Vec::new();
        };
        let node = |(position, value)| Node {
            value,
            path: self.path.index(position),
            report: self.report,
        };
        items.iter().enumerate().map(node).collect()
    }

    /// A text.
    pub fn text(&self) -> Option<&'a str> {
        match self.value {
            Value::Text(text) => Some(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                self.error(format!("is {}", self.value.describe()), "put it in quotes");
                None
            }
            _ => {
                self.expected("a text");
                None
            }
        }
    }

    /// A text that must not be empty.
    pub fn filled_text(&self) -> Option<&'a str> {
        let text = self.text()?;
        if text.is_empty() {
            self.error("is empty", "give it a value or remove it");
            return None;
        }
        Some(text)
    }

    /// A truth value.
    pub fn boolean(&self) -> Option<bool> {
        match self.value {
            Value::Bool(value) => Some(*value),
            _ => {
                self.expected("true or false");
                None
            }
        }
    }

    /// A port as a number.
    pub fn port(&self) -> Option<u16> {
        match self.value {
            Value::Integer(number) => match u16::try_from(*number) {
                Ok(port) if port > 0 => Some(port),
                _ => {
                    self.error(format!("{number} is not a port"), PORT_REMEDY);
                    None
                }
            },
            _ => {
                self.expected("a number");
                None
            }
        }
    }

    /// A port as a text, as security resources write it.
    pub fn port_text(&self) -> Option<u16> {
        let text = self.text()?;
        let port = names::port(text);
        if port.is_none() {
            self.error(format!("{} is not a port", quote(text)), PORT_REMEDY);
        }
        port
    }

    /// An address.
    pub fn address(&self) -> Option<IpAddr> {
        let text = self.text()?;
        let address = text.parse().ok();
        if address.is_none() {
            self.error(
                format!("{} is not an IP address", quote(text)),
                "write one such as 10.0.0.7 or fd00::7",
            );
        }
        address
    }

    /// An address or a CIDR; an address is a CIDR of one.
    pub fn network(&self) -> Option<IpNet> {
        let text = self.text()?;
        let network = text
            .parse::<IpNet>()
            .ok()
            .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        if network.is_none() {
            let message = format!("{} is neither an IP address nor a CIDR", quote(text));
            self.error(message, "write one such as 10.0.0.7 or 10.0.0.0/8");
        }
        network.map(|network| network.trunc())
    }

    /// A text that many objects share.
    pub fn shared_text(&self) -> Option<Arc<str>> {
        Some(self.report.strings.get(self.text()?))
    }

    /// A name of the given form that many objects share.
    pub fn shared_name(&self, form: names::Form) -> Option<Arc<str>> {
        Some(self.report.strings.get(self.checked_name(form)?))
    }

    /// A name of the given form.
    pub fn name(&self, form: names::Form) -> Option<Arc<str>> {
        self.checked_name(form).map(Arc::from)
    }

    fn checked_name(&self, form: names::Form) -> Option<&'a str> {
        let text = self.filled_text()?;
        if !form.accepts(text) {
            self.error(
                format!("{} is not {}", quote(text), form.describe()),
                form.remedy(),
            );
            return None;
        }
        Some(text)
    }

    /// One of the `choices`.
    pub fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&'static str> = choices.iter().map(|(name, _)| *name).collect();
            self.error(
                format!("{} is not known", quote(text)),
                format!("write {}", known.join(", ")),
            );
        }
        found
    }

    /// A map of texts, as labels are.
    pub fn texts(&self) -> Labels {
        self.texts_of(|_| true)
    }

    /// A map of texts, of which only some keys are kept.
    pub fn texts_of(&self, keep: impl Fn(&str) -> bool) -> Labels {
        let strings = &self.report.strings;
        let fields = self.any_fields();
        let read = |(key, node): (&str, Node<'_>)| {
            let text = node.text()?;
            keep(key).then(|| (strings.get(key), strings.get(text)))
        };
        fields.each().filter_map(read).collect()
    }

    fn expected(&self, what: &str) {
        self.error(
            format!("is {}", self.value.describe()),
            format!("write {what}"),
        );
    }
}

const PORT_REMEDY: &str = "write a number from 1 to 65535";

/// The fields of a map.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    entries: &'a [(String, Value)],
    node: Node<'a>,
}

impl<'a> Fields<'a> {
    /// A field, unless it is missing or null.
    pub fn get(&self, name: &'static str) -> Option<Node<'a>> {
        let (_, value) = self.entries.iter().find(|(key, _)| key == name)?;
        let path = self.node.path.key(name);
        if *value == Value::Null {
            // Kubernetes drops it; in a policy it could have narrowed what is allowed.
            let in_spec = self.node.path.steps().first() == Some(&Step::Key("spec".into()));
            if self.node.report.unknown_field == Some(Severity::Error) && in_spec {
                self.node.report.add(
                    Severity::Error,
                    &path,
                    "has no value",
                    "give it one or remove it",
                );
            }
            return None;
        }
        Some(Node {
            value,
            path,
            report: self.node.report,
        })
    }

    /// A field that must be there.
    pub fn required(&self, name: &'static str) -> Option<Node<'a>> {
        let found = self.get(name);
        if found.is_none() {
            self.node.report.add(
                Severity::Error,
                &self.node.path.key(name),
                "is missing",
                "add it",
            );
        }
        found
    }

    /// The items of a list that may be missing.
    pub fn items(&self, name: &'static str) -> Vec<Node<'a>> {
        self.get(name).map(|node| node.items()).unwrap_or_default()
    }

    /// Every entry, with its key.
    pub fn each(&self) -> impl Iterator<Item = (&'a str, Node<'a>)> + '_ {
        self.entries.iter().map(|(key, value)| {
            let path = self.node.path.key(key.clone());
            (
                key.as_str(),
                Node {
                    value,
                    path,
                    report: self.node.report,
                },
            )
        })
    }

    /// The map itself.
    pub fn node(&self) -> &Node<'a> {
        &self.node
    }
}

/// Labels or annotations, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Arc<str>, Arc<str>)]>);

impl FromIterator<(Arc<str>, Arc<str>)> for Labels {
    /// Of two entries with one key the later counts.
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Arc<str>)>>(entries: I) -> Self {
        let sorted: BTreeMap<Arc<str>, Arc<str>> = entries.into_iter().collect();
        Self(sorted.into_iter().collect())
    }
}

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let place = self.0.binary_search_by(|(own, _)| (**own).cmp(key)).ok()?;
        Some(&self.0[place].1)
    }

    /// Whether the label is there with that value.
    pub fn is(&self, key: &str, value: &str) -> bool {
        self.get(key).is_some_and(|found| &**found == value)
    }

    /// Whether every label of `wanted` is there with its value.
    pub fn include(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|(key, value)| self.is(key, value))
    }

    /// These, and those of `over`, which count where both have a key.
    #[must_use]
    pub fn overlaid(&self, over: &Self) -> Self {
        self.0.iter().chain(&over.0).cloned().collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
