//! Values: the chart's own, a profile's, those of files, and single ones, each over the one before.
use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{File, MANAGED_BY, PROFILES, SCHEMA, SchemaError, VALUES, VERSION, schema};

/// Largest file of values, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Why values cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ValuesError {
    /// A file cannot be read.
    #[error("cannot read the values in {path}: {source}; give a readable file")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is too large.
    #[error("{0} has more than {MAX_FILE} bytes; give a file of values")]
    TooLarge(PathBuf),
    /// A file is not YAML.
    #[error("{place} is not YAML: {source}; correct it")]
    Yaml {
        /// Where the text comes from.
        place: String,
        /// What is wrong.
        source: serde_norway::Error,
    },
    /// A file holds something other than a mapping.
    #[error("{0} is not a mapping of values; write for example 'log: {{level: debug}}'")]
    NotAMapping(String),
    /// A single value is not `NAME=VALUE`.
    #[error("'{0}' is not a value; write NAME=VALUE, for example log.level=debug")]
    NotAPair(String),
    /// The chart takes no such value.
    #[error("{0}")]
    Refused(#[from] SchemaError),
}

/// A set of values for a purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Controller and nodes.
    #[default]
    Default,
    /// Only the nodes, under an istiod that runs already.
    Istiod,
    /// Controller and nodes with small requests.
    Demo,
    /// Only the controller, for nodes that run Istio's ztunnel.
    Ztunnel,
}

impl Profile {
    fn file(self) -> Option<File> {
        let name = format!("profiles/{self}.yaml");
        PROFILES.into_iter().find(|file| file.name == name)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Istiod => "istiod",
            Self::Demo => "demo",
            Self::Ztunnel => "ztunnel",
        })
    }
}

/// What somebody wants other than the profile has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Overrides(Map<String, Value>);

impl Overrides {
    /// Reads a file of values over those that are there.
    ///
    /// # Errors
    /// When it cannot be read or is not a mapping in YAML.
    pub fn file(&mut self, path: &Path) -> Result<(), ValuesError> {
        let read = |source| ValuesError::Read {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        fs::File::open(path)
            .map_err(read)?
            .take(MAX_FILE + 1)
            .read_to_string(&mut text)
            .map_err(read)?;
        if text.len() as u64 > MAX_FILE {
            return Err(ValuesError::TooLarge(path.to_owned()));
        }
        merge_maps(&mut self.0, mapping(&path.display().to_string(), &text)?);
        Ok(())
    }

    /// Sets one value, as `a.b=VALUE` with YAML on the right.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn set(&mut self, pair: &str) -> Result<(), ValuesError> {
        let not_a_pair = || ValuesError::NotAPair(pair.to_owned());
        let (name, text) = pair.split_once('=').ok_or_else(not_a_pair)?;
        if name.split('.').any(str::is_empty) {
            return Err(not_a_pair());
        }
        let value = serde_norway::from_str(text).map_err(|source| ValuesError::Yaml {
            place: format!("the value of {name}"),
            source,
        })?;
        // An empty right side is empty text, as for Helm.
        let value = if text.is_empty() { json!("") } else { value };
        let nested = name
            .rsplit('.')
            .fold(value, |value, name| json!({ name: value }));
        if let Value::Object(nested) = nested {
            merge_maps(&mut self.0, nested);
        }
        Ok(())
    }

    /// Puts `newer` over these.
    pub fn extend(&mut self, newer: Self) {
        merge_maps(&mut self.0, newer.0);
    }
}

/// Values that fit the chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Values(Value);

impl Values {
    /// The values of a profile with somebody's changes.
    ///
    /// # Errors
    /// When the chart takes no such values.
    pub fn new(profile: Profile, overrides: &Overrides) -> Result<Self, ValuesError> {
        let mut values = mapping(VALUES.name, VALUES.text)?;
        if let Some(file) = profile.file() {
            merge_maps(&mut values, mapping(file.name, file.text)?);
        }
        merge_maps(&mut values, overrides.0.clone());
        let values = Value::Object(values);
        schema::check(&values, &Value::Object(mapping(SCHEMA.name, SCHEMA.text)?))?;
        Ok(Self(values))
    }

    /// What templates can name. The names are Helm's.
    pub(super) fn scope(&self, namespace: &str) -> Value {
        json!({
            "Values": self.0,
            "Release": { "Namespace": namespace, "Service": MANAGED_BY },
            "Chart": { "AppVersion": VERSION },
        })
    }
}

/// JSON is YAML, too.
fn mapping(place: &str, text: &str) -> Result<Map<String, Value>, ValuesError> {
    let value = serde_norway::from_str(text).map_err(|source| ValuesError::Yaml {
        place: place.to_owned(),
        source,
    })?;
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => Err(ValuesError::NotAMapping(place.to_owned())),
    }
}

/// As Helm does: mappings are joined, everything else is replaced.
fn merge_maps(under: &mut Map<String, Value>, over: Map<String, Value>) {
    for (name, value) in over {
        match (under.get_mut(&name), value) {
            (Some(Value::Object(under)), Value::Object(over)) => merge_maps(under, over),
            (_, value) => {
                under.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(pairs: &[&str]) -> Result<Overrides, ValuesError> {
        let mut overrides = Overrides::default();
        for pair in pairs {
            overrides.set(pair)?;
        }
        Ok(overrides)
    }

    fn values(profile: Profile, pairs: &[&str]) -> Result<Value, String> {
        let overrides = overrides(pairs).map_err(|error| error.to_string())?;
        Values::new(profile, &overrides)
            .map(|values| values.0)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_profile_fits_the_schema() {
        for profile in Profile::value_variants() {
            values(*profile, &[]).unwrap();
            assert_eq!(profile.file().is_none(), *profile == Profile::Default);
        }
    }

    #[test]
    fn later_values_win_and_mappings_are_joined() {
        let values = values(
            Profile::Demo,
            &[
                "controller.replicas=2",
                "controller.replicas=3",
                "image.tag=\"1.0\"",
                "node.caAddress=",
                "node.tolerations=[{key: gpu, operator: Exists}]",
            ],
        )
        .unwrap();
        assert_eq!(values["controller"]["replicas"], 3);
        assert_eq!(values["controller"]["resources"]["requests"]["cpu"], "20m");
        assert_eq!(values["controller"]["resources"]["limits"]["memory"], "1Gi");
        assert_eq!(values["image"]["tag"], "1.0");
        assert_eq!(values["node"]["caAddress"], "");
        assert_eq!(values["node"]["tolerations"][0]["key"], "gpu");
    }

    #[test]
    fn wrong_values_are_named() {
        for (pair, text) in [
            (
                "contoller.replicas=1",
                "contoller: there is no such value; there are",
            ),
            (
                "controller.replicas=many",
                "controller.replicas: \"many\" does not fit; type is \"integer\"",
            ),
            ("controller.replicas=0", "minimum is 1"),
            (
                "image.tag=1.0",
                "image.tag: 1.0 does not fit; type is \"string\"",
            ),
            ("image", "write NAME=VALUE"),
            ("image..tag=x", "write NAME=VALUE"),
            ("image.tag=[", "the value of image.tag is not YAML"),
            ("node=null", "node: null does not fit"),
        ] {
            let error = values(Profile::Default, &[pair]).unwrap_err();
            assert!(error.contains(text), "{pair}: {error}");
        }
    }

    #[test]
    fn files_of_values_are_read_within_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("values.yaml");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            let mut overrides = Overrides::default();
            overrides
                .file(&path)
                .map(|()| overrides)
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            read("log: {level: debug}").unwrap(),
            overrides(&["log.level=debug"]).unwrap()
        );
        assert_eq!(read("").unwrap(), Overrides::default());
        assert!(read("- a").unwrap_err().contains("not a mapping"));
        assert!(read("a: [").unwrap_err().contains("not YAML"));
        assert!(
            read(&" ".repeat(1024 * 1024 + 1))
                .unwrap_err()
                .contains("more than")
        );
        let missing = Overrides::default().file(Path::new("/does/not/exist"));
        assert!(
            missing
                .unwrap_err()
                .to_string()
                .contains("give a readable file")
        );
    }
}
