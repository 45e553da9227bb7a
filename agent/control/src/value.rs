//! A document as plain data, read within limits on depth and size.
//!
//! YAML aliases can stand for far more data than the file holds, so values are counted as they are built.
use std::{borrow::Cow, cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Deepest nesting of lists and maps.
pub const MAX_DEPTH: usize = 48;
/// Most values in one document, aliases expanded.
pub const MAX_VALUES: usize = 2_000_000;

/// A value of JSON or YAML; keys of maps are texts, in the order of the document.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, or nothing after the colon.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// A map.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// The value under `key`, when this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, when this is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What this is, with its article, for messages.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// Reads one value, within [`MAX_DEPTH`] and [`MAX_VALUES`].
    ///
    /// # Errors
    /// The deserializer's, or one that names the limit or the doubled key.
    pub fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(MAX_VALUES);
        Builder {
            left: &left,
            depth: MAX_DEPTH,
        }
        .deserialize(deserializer)
    }

    /// Takes over a value of JSON, within the same limits.
    ///
    /// # Errors
    /// One that names the limit.
    pub fn from_json(json: &serde_json::Value) -> Result<Self, serde_json::Error> {
        Self::read(json)
    }
}

#[derive(Clone, Copy)]
struct Builder<'a> {
    left: &'a Cell<usize>,
    depth: usize,
}

impl Builder<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let depth = self
            .depth
            .checked_sub(1)
            .ok_or_else(|| E::custom(format_args!("nested deeper than {MAX_DEPTH} levels")))?;
        Ok(Self { depth, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Builder<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| {
            D::Error::custom(format_args!(
                "holds more than {MAX_VALUES} values, aliases expanded"
            ))
        })?;
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Builder<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without YAML tags")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut entries = Entries::default();
        while let Some(key) = map.next_key_seed(KeyText)? {
            entries.add(key, map.next_value_seed(inner)?)?;
        }
        Ok(Value::Map(entries.merged()))
    }
}

/// A map under construction.
#[derive(Default)]
struct Entries {
    own: Vec<(String, Value)>,
    names: std::collections::HashSet<String>,
    inherited: Vec<Value>,
}

impl Entries {
    fn add<E: Error>(&mut self, key: Cow<'_, str>, value: Value) -> Result<(), E> {
        // The merge key of YAML 1.1, which Kubernetes takes.
        if key == "<<" {
            self.inherited.push(value);
            return Ok(());
        }
        if !self.names.insert(key.clone().into_owned()) {
            return Err(E::custom(format_args!(
                "the field {} is there twice",
                crate::diagnostic::quote(&key)
            )));
        }
        self.own.push((key.into_owned(), value));
        Ok(())
    }

    fn merged(mut self) -> Vec<(String, Value)> {
        for value in std::mem::take(&mut self.inherited) {
            let sources = match value {
                Value::List(items) => items,
                other => vec![other],
            };
            for (key, value) in sources.into_iter().filter_map(map_entries).flatten() {
                if self.names.insert(key.clone()) {
                    self.own.push((key, value));
                }
            }
        }
        self.own
    }
}

fn map_entries(value: Value) -> Option<Vec<(String, Value)>> {
    match value {
        Value::Map(entries) => Some(entries),
        _ => None,
    }
}

/// Reads the key of a map as text; YAML also allows numbers and booleans there, as in `portLevelMtls`.
#[derive(Clone, Copy)]
pub(crate) struct KeyText;

impl<'de> DeserializeSeed<'de> for KeyText {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeyText {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text as the key of a map")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }

    fn visit_bool<E>(self, key: bool) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_string()))
    }

    fn visit_i64<E>(self, key: i64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_string()))
    }

    fn visit_u64<E>(self, key: u64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_string()))
    }

    fn visit_f64<E>(self, key: f64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Value, String> {
        Value::read(serde_norway::Deserializer::from_str(text)).map_err(|error| error.to_string())
    }

    #[test]
    fn merge_keys_fill_what_is_missing() {
        let value = read("base: &b {a: 1, b: 2}\nuse:\n  <<: *b\n  b: 3\n").unwrap();
        let used = value.get("use").unwrap();
        assert_eq!(used.get("a"), Some(&Value::Integer(1)));
        assert_eq!(used.get("b"), Some(&Value::Integer(3)));
    }

    #[test]
    fn numbers_may_be_keys() {
        assert_eq!(
            read("8080: x").unwrap().get("8080"),
            Some(&Value::Text("x".to_owned()))
        );
    }

    #[test]
    fn doubled_keys_are_refused() {
        assert!(
            read("a: 1\na: 2")
                .unwrap_err()
                .contains("'a' is there twice")
        );
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(read(&"[".repeat(MAX_DEPTH + 2)).is_err());
    }

    #[test]
    fn aliases_cannot_blow_up_the_memory() {
        let wide = format!("a: &a [{}]\n", "1,".repeat(20_000));
        let many = format!("{wide}b: [{}]\n", "*a,".repeat(20_000));
        assert!(read(&many).unwrap_err().contains("aliases expanded"));
    }

    #[test]
    fn tags_are_refused() {
        assert!(read("a: !secret x").is_err());
    }
}
