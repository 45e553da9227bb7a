//! Checks values against `values.schema.json`, so that Helm and the installer accept the same.
//!
//! Supported is what the file uses of JSON Schema draft 7; another keyword in it is an error.
use serde_json::{Map, Value};

/// A value that the schema refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct SchemaError {
    /// Where, as `node.cni.binDir`.
    pub path: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Keywords that say nothing about values.
const NOTES: [&str; 3] = ["$schema", "title", "description"];

/// Checks `value` and all below it.
pub(super) fn check(value: &Value, schema: &Value) -> Result<(), SchemaError> {
    check_at("", value, schema)
}

fn check_at(path: &str, value: &Value, schema: &Value) -> Result<(), SchemaError> {
    let rules = schema.as_object().ok_or_else(|| SchemaError {
        path: path.to_owned(),
        problem: "the schema is damaged; take the chart of a release".to_owned(),
    })?;
    for (keyword, rule) in rules {
        apply(keyword, rule, rules, value, path)?;
    }
    Ok(())
}

fn apply(
    keyword: &str,
    rule: &Value,
    rules: &Map<String, Value>,
    value: &Value,
    path: &str,
) -> Result<(), SchemaError> {
    let holds = match keyword {
        "type" => type_of(value) == rule,
        "enum" => rule.as_array().is_some_and(|all| all.contains(value)),
        "minimum" => compare(value.as_i64(), rule, |a, b| a >= b),
        "maximum" => compare(value.as_i64(), rule, |a, b| a <= b),
        "minLength" => compare(length(value), rule, |a, b| a >= b),
        "maxLength" => compare(length(value), rule, |a, b| a <= b),
        "items" => {
            let items = value.as_array().into_iter().flatten().enumerate();
            for (index, item) in items {
                check_at(&format!("{path}[{index}]"), item, rule)?;
            }
            true
        }
        "properties" | "additionalProperties" => return properties(rules, value, path),
        note => NOTES.contains(&note),
    };
    if holds {
        return Ok(());
    }
    Err(SchemaError {
        path: path.to_owned(),
        problem: format!("{value} does not fit; {keyword} is {rule}"),
    })
}

fn properties(rules: &Map<String, Value>, value: &Value, path: &str) -> Result<(), SchemaError> {
    let known = rules.get("properties").and_then(Value::as_object);
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        match known.and_then(|known| known.get(name)) {
            Some(schema) => check_at(&path, value, schema)?,
            None => {
                let names: Vec<_> = known.into_iter().flat_map(Map::keys).cloned().collect();
                let names = names.join(", ");
                return Err(SchemaError {
                    path,
                    problem: format!("there is no such value; there are {names}"),
                });
            }
        }
    }
    Ok(())
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn length(value: &Value) -> Option<i64> {
    i64::try_from(value.as_str()?.chars().count()).ok()
}

/// A value of another type is the business of the keyword `type`.
fn compare(value: Option<i64>, limit: &Value, holds: fn(i64, i64) -> bool) -> bool {
    match (value, limit.as_i64()) {
        (Some(value), Some(limit)) => holds(value, limit),
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_checked_where_they_stand() {
        let schema = json!({"type": "object", "additionalProperties": false, "properties": {
            "a": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 3}}, "additionalProperties": false},
            "s": {"type": "string", "minLength": 1, "maxLength": 2},
            "e": {"enum": ["x", "y"]},
            "l": {"type": "array", "items": {"type": "string"}},
            "free": {"type": "object"},
        }});
        assert_eq!(
            check(
                &json!({"a": {"n": 2}, "s": "é", "e": "y", "l": ["q"], "free": {"z": 1}}),
                &schema
            ),
            Ok(())
        );
        for (value, path) in [
            (json!({"a": {"n": 0}}), "a.n"),
            (json!({"a": {"n": 4}}), "a.n"),
            (json!({"a": {"n": 1.5}}), "a.n"),
            (json!({"a": {"m": 1}}), "a.m"),
            (json!({"a": null}), "a"),
            (json!({"s": ""}), "s"),
            (json!({"s": "abc"}), "s"),
            (json!({"e": "z"}), "e"),
            (json!({"l": ["q", 1]}), "l[1]"),
            (json!({"b": 1}), "b"),
        ] {
            assert_eq!(check(&value, &schema).unwrap_err().path, path, "{value}");
        }
    }

    #[test]
    fn a_keyword_that_is_not_understood_lets_nothing_through() {
        assert!(check(&json!("a"), &json!({"pattern": "a"})).is_err());
    }
}
