//! The path of a field inside a document, written as Kubernetes writes it: `spec.rules[0].from`.
use std::{borrow::Cow, fmt};

/// One step down into a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a map, by key.
    Key(Cow<'static, str>),
    /// Into a list, by position.
    Index(usize),
}

/// The steps from the document's root to a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(Vec<Step>);

impl Path {
    /// The document itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The field `name` of the map at this path.
    #[must_use]
    pub fn key(&self, name: impl Into<Cow<'static, str>>) -> Self {
        self.step(Step::Key(name.into()))
    }

    /// The item at `position` of the list at this path.
    #[must_use]
    pub fn index(&self, position: usize) -> Self {
        self.step(Step::Index(position))
    }

    /// `inner`, taken as a path below this one.
    #[must_use]
    pub fn join(&self, inner: &Self) -> Self {
        Self(self.0.iter().chain(&inner.0).cloned().collect())
    }

    /// Whether this is the document itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The steps from the root.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    fn step(&self, step: Step) -> Self {
        let mut steps = Vec::with_capacity(self.0.len() + 1);
        steps.extend_from_slice(&self.0);
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if is_plain(key) && position == 0 => write!(f, "{key}")?,
                Step::Key(key) if is_plain(key) => write!(f, ".{key}")?,
                Step::Key(key) => write!(f, "[{}]", crate::diagnostic::quote(key))?,
            }
        }
        Ok(())
    }
}

fn is_plain(key: &str) -> bool {
    !key.is_empty() && key.len() <= 64 && key.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_as_kubernetes_writes_it() {
        let path = Path::root().key("spec").key("rules").index(2).key("from");
        assert_eq!(path.to_string(), "spec.rules[2].from");
        let label = Path::root()
            .key("metadata")
            .key("labels")
            .key("a.b/c".to_owned());
        assert_eq!(label.to_string(), "metadata.labels['a.b/c']");
    }
}
