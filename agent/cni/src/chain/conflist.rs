//! Network configurations: our plugin goes in, once, at the end; and out again. No I/O.
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::plugin::Options;

/// The version of a list that is made of a configuration that names none.
const DEFAULT_VERSION: &str = "0.3.1";

/// Our entry in a list of plugins.
#[derive(Clone, Debug, Serialize)]
pub struct Plugin {
    /// The name of the program.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What it is told.
    #[serde(flatten)]
    pub options: Options,
}

/// Why a configuration cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// It is not JSON.
    #[error("it is not JSON: {0}; correct it, or set up the node's network again")]
    Json(#[from] serde_json::Error),
    /// It lacks what every configuration has.
    #[error("it has no {0}; correct it, or set up the node's network again")]
    Incomplete(&'static str),
}

/// Puts the plugin at the end of a list; `None` where it is there already, just so.
pub fn insert(text: &[u8], plugin: &Plugin) -> Result<Option<Vec<u8>>, ConflistError> {
    let mut list: Map<String, Value> = serde_json::from_slice(text)?;
    let wanted = serde_json::to_value(plugin)?;
    let plugins = plugins(&mut list)?;
    let others: Vec<Value> = plugins
        .iter()
        .filter(|other| !is(other, plugin.kind))
        .cloned()
        .collect();
    if others.is_empty() {
        return Err(ConflistError::Incomplete("plugin that makes a network"));
    }
    if plugins.len() == others.len() + 1 && plugins.last() == Some(&wanted) {
        return Ok(None);
    }
    *plugins = others;
    plugins.push(wanted);
    Ok(Some(print(&Value::Object(list))?))
}

/// Makes a list of a configuration of one plugin, and puts ours behind it.
pub fn convert(text: &[u8], plugin: &Plugin) -> Result<Vec<u8>, ConflistError> {
    let single: Map<String, Value> = serde_json::from_slice(text)?;
    // A list may have the name of a single one; container runtimes tell them apart by their names alone.
    let field = |name| single.get(name).filter(|value| value.is_string());
    let name = field("name").ok_or(ConflistError::Incomplete("name"))?;
    field("type").ok_or(ConflistError::Incomplete("type"))?;
    let version = field("cniVersion").cloned();
    let list = json!({
        "cniVersion": version.unwrap_or_else(|| DEFAULT_VERSION.into()),
        "name": name,
        "plugins": [&single, plugin],
    });
    print(&list)
}

/// Takes every plugin of this kind out of a list; `None` where there is none.
pub fn remove(text: &[u8], kind: &str) -> Result<Option<Vec<u8>>, ConflistError> {
    let mut list: Map<String, Value> = serde_json::from_slice(text)?;
    let plugins = plugins(&mut list)?;
    let before = plugins.len();
    plugins.retain(|plugin| !is(plugin, kind));
    if plugins.len() == before {
        return Ok(None);
    }
    Ok(Some(print(&Value::Object(list))?))
}

fn plugins(list: &mut Map<String, Value>) -> Result<&mut Vec<Value>, ConflistError> {
    list.get_mut("plugins")
        .and_then(Value::as_array_mut)
        .ok_or(ConflistError::Incomplete("list of plugins"))
}

fn is(plugin: &Value, kind: &str) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(kind)
}

fn print(value: &Value) -> Result<Vec<u8>, ConflistError> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::plugin::WhenAway;

    fn plugin(timeout_ms: u64) -> Plugin {
        Plugin {
            kind: "undermesh-cni",
            options: Options {
                socket: "/run/undermesh/cni.sock".into(),
                timeout_ms,
                when_agent_is_away: WhenAway::Refuse,
                exclude_namespaces: BTreeSet::from(["kube-system".to_owned()]),
            },
        }
    }

    fn kinds(text: &[u8]) -> Vec<String> {
        let list: Value = serde_json::from_slice(text).unwrap();
        let plugins = list["plugins"].as_array().unwrap().iter();
        plugins
            .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
            .collect()
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","disableCheck":true,
        "plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap"}]}"#;

    #[test]
    fn the_plugin_goes_to_the_end_once() {
        let text = insert(LIST.as_bytes(), &plugin(1)).unwrap().unwrap();
        assert_eq!(kinds(&text), ["bridge", "portmap", "undermesh-cni"]);
        let list: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(list["disableCheck"], true);
        assert_eq!(
            list["plugins"][2],
            json!({
                "type": "undermesh-cni", "socket": "/run/undermesh/cni.sock", "timeoutMs": 1,
                "whenAgentIsAway": "refuse", "excludeNamespaces": ["kube-system"],
            })
        );
        assert!(insert(&text, &plugin(1)).unwrap().is_none());
        let newer = insert(&text, &plugin(2)).unwrap().unwrap();
        assert_eq!(kinds(&newer), ["bridge", "portmap", "undermesh-cni"]);
    }

    #[test]
    fn a_plugin_that_came_behind_ours_comes_before_it() {
        let list =
            br#"{"name":"pods","plugins":[{"type":"a"},{"type":"undermesh-cni"},{"type":"b"}]}"#;
        let text = insert(list, &plugin(1)).unwrap().unwrap();
        assert_eq!(kinds(&text), ["a", "b", "undermesh-cni"]);
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let single = br#"{"cniVersion":"0.4.0","name":"pods","type":"bridge","mtu":1400}"#;
        let text = convert(single, &plugin(1)).unwrap();
        let list: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(list["cniVersion"], "0.4.0");
        assert_eq!(list["plugins"][0]["mtu"], 1400);
        assert_eq!(kinds(&text), ["bridge", "undermesh-cni"]);
    }

    #[test]
    fn what_is_not_a_configuration_is_left_alone() {
        for text in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"plugins":{}}"#,
            r#"{"plugins":[]}"#,
        ] {
            let error = insert(text.as_bytes(), &plugin(1)).unwrap_err();
            assert!(
                error.to_string().contains("; correct it"),
                "{text}: {error}"
            );
        }
        for text in ["{", "{}", r#"{"name":"a"}"#, r#"{"type":"a"}"#] {
            assert!(convert(text.as_bytes(), &plugin(1)).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_again(kinds_before in prop::collection::vec("[a-z]{1,6}", 1..6)) {
            let plugins: Vec<Value> = kinds_before.iter().map(|kind| json!({"type": kind})).collect();
            let list = json!({"name": "pods", "plugins": plugins});
            let text = insert(list.to_string().as_bytes(), &plugin(1)).unwrap().unwrap();
            let without = remove(&text, "undermesh-cni").unwrap().unwrap();
            prop_assert_eq!(serde_json::from_slice::<Value>(&without).unwrap(), list);
            prop_assert!(remove(&without, "undermesh-cni").unwrap().is_none());
        }
    }
}
