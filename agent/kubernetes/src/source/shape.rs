//! Which fields of an object are kept, decided while it is read, so that the rest is never held.
use std::{fmt, marker::PhantomData};

use kube::api::ListMeta;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// What is kept of a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mask {
    /// All of it.
    Everything,
    /// These fields of a map.
    Fields(&'static [(&'static str, Mask)]),
    /// This much of each item of a list.
    Items(&'static Mask),
}

use Mask::{Everything, Fields, Items};

/// Metadata without `managedFields`, which are often larger than everything else.
const METADATA: Mask = Fields(&[
    ("name", Everything),
    ("namespace", Everything),
    ("uid", Everything),
    ("resourceVersion", Everything),
    ("generation", Everything),
    ("creationTimestamp", Everything),
    ("deletionTimestamp", Everything),
    ("labels", Everything),
    ("annotations", Everything),
    ("ownerReferences", Everything),
]);

const CONTAINER: Mask = Fields(&[("ports", Everything)]);
const CONDITION: Mask = Fields(&[("type", Everything), ("status", Everything)]);

/// The objects of some kinds, as far as they are kept.
pub(super) trait Shape: Clone + Send + Sync + 'static {
    const MASK: Mask;
}

/// A pod: most of it is about its containers.
#[derive(Clone, Debug)]
pub(super) struct PodShape;

impl Shape for PodShape {
    const MASK: Mask = Fields(&[
        ("metadata", METADATA),
        (
            "spec",
            Fields(&[
                ("nodeName", Everything),
                ("serviceAccountName", Everything),
                ("serviceAccount", Everything),
                ("hostNetwork", Everything),
                ("containers", Items(&CONTAINER)),
                ("initContainers", Items(&CONTAINER)),
            ]),
        ),
        (
            "status",
            Fields(&[
                ("phase", Everything),
                ("podIP", Everything),
                ("podIPs", Everything),
                ("conditions", Items(&CONDITION)),
            ]),
        ),
    ]);
}

/// Any other object: all that a person wrote.
#[derive(Clone, Debug)]
pub(super) struct WholeShape;

impl Shape for WholeShape {
    const MASK: Mask = Fields(&[
        ("metadata", METADATA),
        ("spec", Everything),
        ("status", Everything),
        ("addressType", Everything),
        ("endpoints", Everything),
        ("ports", Everything),
    ]);
}

/// An object of this shape.
#[derive(Clone, Debug)]
pub(super) struct Shaped<S> {
    pub value: Value,
    shape: PhantomData<S>,
}

impl<'de, S: Shape> Deserialize<'de> for Shaped<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = S::MASK.deserialize(deserializer)?;
        Ok(Self {
            value,
            shape: PhantomData,
        })
    }
}

/// A page of a list.
#[derive(Debug, Deserialize)]
#[serde(bound = "S: Shape")]
pub(super) struct Page<S> {
    pub metadata: ListMeta,
    /// An empty list may be written as null.
    pub items: Option<Vec<Shaped<S>>>,
}

impl<'de> DeserializeSeed<'de> for Mask {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Everything => Value::deserialize(deserializer),
            Fields(_) | Items(_) => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Mask {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let item = match self {
            Items(item) => *item,
            Everything | Fields(_) => Everything,
        };
        let mut items = Vec::new();
        while let Some(value) = list.next_element_seed(item)? {
            items.push(value);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let mask = match self {
                Fields(fields) => fields.iter().find(|(field, _)| *field == name),
                Everything | Items(_) => Some(&("", Everything)),
            };
            match mask {
                Some((_, mask)) => {
                    kept.insert(name, map.next_value_seed(*mask)?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }
}

#[cfg(test)]
mod tests {
    use kube::api::WatchEvent;
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1",
            "metadata": { "name": "a", "managedFields": [{ "manager": "x" }], "labels": { "k": "v" } },
            "spec": {
                "nodeName": "n",
                "volumes": [{ "name": "v" }],
                "containers": [{ "name": "c", "env": [], "ports": [{ "containerPort": 80 }] }],
            },
            "status": { "phase": "Running", "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "t" },
            ] },
        })
    }

    fn pruned() -> Value {
        json!({
            "metadata": { "name": "a", "labels": { "k": "v" } },
            "spec": { "nodeName": "n", "containers": [{ "ports": [{ "containerPort": 80 }] }] },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
        })
    }

    #[test]
    fn only_what_is_used_is_kept() {
        let shaped: Shaped<PodShape> = serde_json::from_value(pod()).unwrap();
        assert_eq!(shaped.value, pruned());
    }

    #[test]
    fn lists_and_watches_are_pruned_alike() {
        let page = json!({ "metadata": { "resourceVersion": "1" }, "items": [pod()] }).to_string();
        let page: Page<PodShape> = serde_json::from_str(&page).unwrap();
        assert_eq!(page.items.unwrap()[0].value, pruned());
        let event = json!({ "type": "ADDED", "object": pod() }).to_string();
        match serde_json::from_str::<WatchEvent<Shaped<PodShape>>>(&event).unwrap() {
            WatchEvent::Added(shaped) => assert_eq!(shaped.value, pruned()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_of_another_form_pass_unchanged() {
        let odd = json!({ "metadata": null, "spec": [1, "x"], "status": 1.5 });
        let shaped: Shaped<PodShape> = serde_json::from_value(odd.clone()).unwrap();
        assert_eq!(shaped.value, odd);
    }

    #[test]
    fn an_empty_list_may_be_null() {
        let text = r#"{"metadata":{"resourceVersion":"1"},"items":null}"#;
        assert!(
            serde_json::from_str::<Page<WholeShape>>(text)
                .unwrap()
                .items
                .is_none()
        );
    }

    #[test]
    fn policies_keep_every_field_below_spec() {
        let policy = json!({ "metadata": { "name": "p" }, "spec": { "rules": [{ "new": 1 }] } });
        let shaped: Shaped<WholeShape> = serde_json::from_value(policy.clone()).unwrap();
        assert_eq!(shaped.value, policy);
    }
}
