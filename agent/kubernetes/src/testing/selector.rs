//! Label and field selectors of lists and watches.
use serde_json::Value;

use super::status::Status;

/// What a list or watch is narrowed to.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

/// Fields that can be selected by, as paths.
const FIELDS: &[(&str, &str)] = &[
    ("metadata.name", "/metadata/name"),
    ("metadata.namespace", "/metadata/namespace"),
    ("spec.nodeName", "/spec/nodeName"),
    ("spec.serviceAccountName", "/spec/serviceAccountName"),
    ("status.phase", "/status/phase"),
    ("type", "/type"),
];

impl Selector {
    /// Reads the parameters `labelSelector` and `fieldSelector`.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, Status> {
        let fields = requirements(fields)?;
        let unknown = |field: &&Requirement| !FIELDS.iter().any(|(name, _)| *name == field.key);
        if let Some(field) = fields.iter().find(unknown) {
            return Err(Status::bad_request(format!(
                "field label not supported: {}",
                field.key
            )));
        }
        Ok(Self {
            labels: requirements(labels)?,
            fields,
        })
    }

    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        let field = |key: &str| {
            let (_, path) = FIELDS.iter().find(|(name, _)| *name == key)?;
            Some(object.pointer(path).and_then(Value::as_str).unwrap_or(""))
        };
        self.labels.iter().all(|it| it.holds(label(&it.key)))
            && self.fields.iter().all(|it| it.holds(field(&it.key)))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let among = |values: &[String]| value.is_some_and(|it| values.iter().any(|one| one == it));
        match &self.operator {
            Operator::In(values) => among(values),
            Operator::NotIn(values) => !among(values),
            Operator::Exists => value.is_some(),
            Operator::Missing => value.is_none(),
        }
    }
}

fn requirements(text: &str) -> Result<Vec<Requirement>, Status> {
    split(text)
        .into_iter()
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(requirement)
        .collect()
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(move |character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    })
    .collect()
}

fn requirement(text: &str) -> Result<Requirement, Status> {
    let one = |key: &str, operator: fn(Vec<String>) -> Operator, value: &str| Requirement {
        key: key.trim().to_owned(),
        operator: operator(vec![value.trim().to_owned()]),
    };
    if let Some((key, values)) = text.split_once(" notin ") {
        return set(key, Operator::NotIn, values);
    }
    if let Some((key, values)) = text.split_once(" in ") {
        return set(key, Operator::In, values);
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Ok(one(key, Operator::NotIn, value));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(one(key, Operator::In, value));
    }
    let (key, operator) = match text.strip_prefix('!') {
        Some(key) => (key, Operator::Missing),
        None => (text, Operator::Exists),
    };
    Ok(Requirement {
        key: key.trim().to_owned(),
        operator,
    })
}

fn set(
    key: &str,
    operator: fn(Vec<String>) -> Operator,
    values: &str,
) -> Result<Requirement, Status> {
    let inner = values
        .trim()
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .ok_or_else(|| {
            Status::bad_request(format!("unable to parse requirement: found {values:?}"))
        })?;
    Ok(Requirement {
        key: key.trim().to_owned(),
        operator: operator(inner.split(',').map(|it| it.trim().to_owned()).collect()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(labels: &str, fields: &str) -> bool {
        let object = json!({
            "metadata": { "name": "a", "labels": { "app": "web", "tier": "front" } },
            "spec": { "nodeName": "n1" },
        });
        Selector::parse(labels, fields).unwrap().matches(&object)
    }

    #[test]
    fn labels_are_compared_listed_and_looked_for() {
        assert!(selects("app=web,tier!=back", ""));
        assert!(selects("app in (db, web),tier notin (back)", ""));
        assert!(selects("app,!zone", ""));
        assert!(!selects("zone", ""));
        assert!(!selects("app==db", ""));
        assert!(selects("zone!=z", ""));
    }

    #[test]
    fn fields_are_compared_and_unknown_ones_refused() {
        assert!(selects("", "metadata.name=a,spec.nodeName=n1"));
        assert!(!selects("", "spec.nodeName!=n1"));
        assert!(Selector::parse("", "spec.containers=x").is_err());
    }
}
