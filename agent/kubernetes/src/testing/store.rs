//! The objects, their versions, and the log of changes that watches read.
use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    apply::{self, Owner, Writer},
    kinds::{self, KindInfo},
    record::{Event, Key, Part, key_of},
    status::Status,
    upkeep::{
        desired, has_finalizers, keep_identity, keep_parts, now, remove_field, without_bookkeeping,
    },
};

/// Listings whose further pages are kept.
const MAX_LISTINGS: usize = 64;

#[derive(Debug)]
struct Entry {
    object: Arc<Value>,
    owners: Vec<Owner>,
}

/// The state of a cluster.
#[derive(Debug)]
pub(super) struct Store {
    revision: u64,
    /// Watches cannot begin before this version.
    oldest: u64,
    /// The newest version whose change is no longer in the log.
    forgotten: u64,
    kinds: Vec<Arc<KindInfo>>,
    objects: BTreeMap<Key, Entry>,
    log: VecDeque<Event>,
    listings: BTreeMap<u64, (u64, Vec<Arc<Value>>)>,
    serial: u64,
    origin: u64,
}

impl Store {
    /// A cluster with the namespaces that every cluster has.
    pub fn new() -> Self {
        let mut store = Self {
            revision: 1,
            oldest: 1,
            forgotten: 1,
            kinds: kinds::built_in().into_iter().map(Arc::new).collect(),
            objects: BTreeMap::new(),
            log: VecDeque::new(),
            listings: BTreeMap::new(),
            serial: 0,
            // Differs from one to the next, as the uids of one cluster differ from those of another.
            origin: RandomState::new().hash_one(0_u8),
        };
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            store.put(json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name },
            }));
        }
        store
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn kinds(&self) -> &[Arc<KindInfo>] {
        &self.kinds
    }

    pub fn kind_of_path(&self, group: &str, version: &str, plural: &str) -> Option<Arc<KindInfo>> {
        let found = self.kinds.iter().find(|kind| {
            kind.group == group
                && kind.plural == plural
                && kind.versions.iter().any(|it| it == version)
        });
        found.cloned()
    }

    /// Finds a kind by its name and, when that is not empty, its group.
    pub fn kind_named(&self, name: &str, group: Option<&str>) -> Option<Arc<KindInfo>> {
        let found = self
            .kinds
            .iter()
            .find(|kind| kind.kind == name && group.is_none_or(|group| kind.group == group));
        found.cloned()
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.objects.get(key).map(|entry| entry.object.clone())
    }

    /// All objects of a kind, in one namespace or in all.
    pub fn list(&self, kind: &KindInfo, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let first = Key {
            group: kind.group.clone(),
            plural: kind.plural.clone(),
            namespace: namespace.unwrap_or_default().to_owned(),
            name: String::new(),
        };
        self.objects
            .range(first..)
            .take_while(|(key, _)| key.group == kind.group && key.plural == kind.plural)
            .take_while(|(key, _)| namespace.is_none_or(|it| it == key.namespace))
            .map(|(_, entry)| entry.object.clone())
            .collect()
    }

    /// Keeps the rest of a listing; returns the token for it.
    pub fn keep_listing(&mut self, revision: u64, rest: Vec<Arc<Value>>) -> u64 {
        self.serial += 1;
        self.listings.insert(self.serial, (revision, rest));
        while self.listings.len() > MAX_LISTINGS {
            self.listings.pop_first();
        }
        self.serial
    }

    /// The rest of a listing, as it was when the listing began.
    pub fn listing(&self, token: u64) -> Result<(u64, Vec<Arc<Value>>), Status> {
        let found = self.listings.get(&token).cloned();
        found.ok_or_else(|| Status::expired(token, self.oldest))
    }

    /// Forgets the changes so far, so that watches from earlier versions are gone.
    pub fn compact(&mut self) {
        self.forgotten = self.revision;
        self.revision += 1;
        self.oldest = self.revision;
        self.log.clear();
        self.listings.clear();
    }

    /// Whether a watch may begin at this version.
    pub fn check_start(&self, from: u64) -> Result<(), Status> {
        if from < self.oldest {
            return Err(Status::expired(from, self.oldest));
        }
        if from > self.revision {
            return Err(Status::too_large_version(from, self.revision));
        }
        Ok(())
    }

    /// The changes after `from`.
    pub fn events_after(&self, from: u64) -> Result<impl Iterator<Item = &Event>, Status> {
        if from < self.forgotten {
            return Err(Status::expired(from, self.oldest));
        }
        let start = self.log.partition_point(|event| event.revision <= from);
        Ok(self.log.range(start..))
    }

    pub fn create(
        &mut self,
        kind: &KindInfo,
        namespace: &str,
        mut object: Value,
        writer: &Writer,
    ) -> Result<Arc<Value>, Status> {
        let name = self.name_for(&mut object)?;
        let key = key_of(kind, namespace, &name);
        if self.objects.contains_key(&key) {
            return Err(Status::already_exists(&kind.qualified(), &name));
        }
        self.check_namespace(kind, namespace)?;
        if kind.status {
            remove_field(&mut object, "status");
        }
        let mut owners = Vec::new();
        apply::updated(&mut owners, &Value::Null, &object, writer);
        self.add(kind, key, object, owners)
    }

    /// Writes over an object.
    pub fn replace(
        &mut self,
        kind: &KindInfo,
        key: &Key,
        mut object: Value,
        part: Part,
        writer: &Writer,
    ) -> Result<Arc<Value>, Status> {
        let entry = self.existing(kind, key)?;
        let mut owners = entry.owners.clone();
        let old = entry.object.clone();
        let version = &object["metadata"]["resourceVersion"];
        let stale = version
            .as_str()
            .is_some_and(|it| !it.is_empty() && old["metadata"]["resourceVersion"] != it);
        let uid = object["metadata"]["uid"].as_str();
        let other = uid.is_some_and(|uid| old["metadata"]["uid"] != uid);
        if part != Part::Whole && (stale || other) {
            return Err(Status::stale(&kind.qualified(), &key.name));
        }
        keep_parts(kind, &old, &mut object, part);
        apply::updated(&mut owners, &old, &object, writer);
        self.change(kind, key, &old, object, owners)
    }

    /// Server-side apply: makes the object, or merges into it.
    pub fn apply(
        &mut self,
        kind: &KindInfo,
        key: &Key,
        mut applied: Value,
        part: Part,
        writer: &Writer,
        force: bool,
    ) -> Result<(Arc<Value>, bool), Status> {
        if applied["metadata"]["managedFields"].is_array() {
            let message = "metadata.managedFields must be nil";
            return Err(Status::bad_request(message));
        }
        applied["metadata"]["name"] = json!(key.name);
        let Some(entry) = self.objects.get(key) else {
            if part == Part::Status {
                return Err(Status::not_found(&kind.qualified(), &key.name));
            }
            self.check_namespace(kind, &key.namespace)?;
            if kind.status {
                remove_field(&mut applied, "status");
            }
            let mut owners = Vec::new();
            apply::apply(&mut applied.clone(), &mut owners, &applied, writer, force)?;
            let made = self.add(kind, key.clone(), applied, owners)?;
            return Ok((made, true));
        };
        let old = entry.object.clone();
        let mut owners = entry.owners.clone();
        let version = &applied["metadata"]["resourceVersion"];
        if version.is_string() && *version != old["metadata"]["resourceVersion"] {
            return Err(Status::stale(&kind.qualified(), &key.name));
        }
        match part {
            Part::Status => {
                applied = json!({ "status": applied["status"] });
            }
            Part::Main if kind.status => remove_field(&mut applied, "status"),
            Part::Main | Part::Whole => {}
        }
        let mut object = (*old).clone();
        apply::apply(&mut object, &mut owners, &applied, writer, force)?;
        let changed = self.change(kind, key, &old, object, owners)?;
        Ok((changed, false))
    }

    /// Deletes an object, or marks it when finalizers hold it.
    pub fn delete(
        &mut self,
        kind: &KindInfo,
        key: &Key,
        options: &Value,
    ) -> Result<Arc<Value>, Status> {
        let entry = self.existing(kind, key)?;
        let old = entry.object.clone();
        let owners = entry.owners.clone();
        for field in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][field];
            if wanted.is_string() && *wanted != old["metadata"][field] {
                return Err(Status::stale(&kind.qualified(), &key.name));
            }
        }
        if !has_finalizers(&old) {
            return Ok(self.remove(key));
        }
        if old["metadata"]["deletionTimestamp"].is_string() {
            return Ok(old);
        }
        let mut object = (*old).clone();
        object["metadata"]["deletionTimestamp"] = json!(now());
        object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        self.change(kind, key, &old, object, owners)
    }

    /// Puts an object as it is, new or not, as a component of the cluster would; another uid makes it another
    /// object.
    ///
    /// # Panics
    /// When its kind is not known.
    pub fn put(&mut self, mut object: Value) -> Arc<Value> {
        let (kind, key) = self.locate(&object);
        let writer = Writer {
            manager: "test".to_owned(),
            operation: "Update",
            subresource: "",
        };
        let uid = &object["metadata"]["uid"];
        if let Some(old) = self.get(&key)
            && uid.is_string()
            && *uid != old["metadata"]["uid"]
        {
            self.remove(&key);
        }
        let outcome = if self.objects.contains_key(&key) {
            self.replace(&kind, &key, object, Part::Whole, &writer)
        } else {
            let mut owners = Vec::new();
            object["metadata"]["name"] = json!(key.name);
            apply::updated(&mut owners, &Value::Null, &object, &writer);
            self.add(&kind, key, object, owners)
        };
        outcome.expect("an object that can be put")
    }

    /// Removes an object at once, whatever holds it.
    ///
    /// # Panics
    /// When it is not there.
    pub fn remove(&mut self, key: &Key) -> Arc<Value> {
        if key.plural == "namespaces" {
            self.remove_where(|it| it.namespace == key.name);
        }
        let entry = self.objects.remove(key).expect("an object to remove");
        self.revision += 1;
        let mut last = (*entry.object).clone();
        last["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let last = Arc::new(last);
        self.log.push_back(Event {
            revision: self.revision,
            key: key.clone(),
            before: Some(entry.object),
            after: last.clone(),
            deleted: true,
        });
        if key.plural == kinds::CRD_PLURAL
            && let Ok(defined) = kinds::defined_by(&last)
        {
            self.remove_where(|it| it.group == defined.group && it.plural == defined.plural);
            self.kinds
                .retain(|it| (&it.group, &it.plural) != (&defined.group, &defined.plural));
        }
        last
    }

    /// Kind and key of an object by what it says of itself.
    ///
    /// # Panics
    /// When it says too little, or its kind is not known.
    pub fn locate(&self, object: &Value) -> (Arc<KindInfo>, Key) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let api_version = text(&object["apiVersion"]);
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let name = text(&object["kind"]);
        let kind = self
            .kind_named(&name, Some(group))
            .unwrap_or_else(|| panic!("no kind {name} of {api_version:?}; define it first"));
        let metadata = &object["metadata"];
        let key = key_of(
            &kind,
            &text(&metadata["namespace"]),
            &text(&metadata["name"]),
        );
        assert!(!key.name.is_empty(), "no metadata.name in {object}");
        (kind, key)
    }

    fn remove_where(&mut self, goes: impl Fn(&Key) -> bool) {
        let gone: Vec<Key> = self
            .objects
            .keys()
            .filter(|key| goes(key))
            .cloned()
            .collect();
        for key in gone {
            self.remove(&key);
        }
    }

    fn existing(&self, kind: &KindInfo, key: &Key) -> Result<&Entry, Status> {
        let found = self.objects.get(key);
        found.ok_or_else(|| Status::not_found(&kind.qualified(), &key.name))
    }

    fn check_namespace(&self, kind: &KindInfo, namespace: &str) -> Result<(), Status> {
        let key = Key {
            group: String::new(),
            plural: "namespaces".to_owned(),
            namespace: String::new(),
            name: namespace.to_owned(),
        };
        if kind.namespaced && !self.objects.contains_key(&key) {
            return Err(Status::not_found("namespaces", namespace));
        }
        Ok(())
    }

    fn name_for(&mut self, object: &mut Value) -> Result<String, Status> {
        let metadata = &mut object["metadata"];
        if let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) {
            return Ok(name.to_owned());
        }
        let Some(prefix) = metadata["generateName"].as_str() else {
            let message = "metadata.name: Required value: name or generateName is required";
            return Err(Status::invalid(message.to_owned()));
        };
        self.serial += 1;
        let name = format!("{prefix}{:05x}", self.serial);
        metadata["name"] = json!(name);
        Ok(name)
    }

    /// Adds an object that is not there yet.
    fn add(
        &mut self,
        kind: &KindInfo,
        key: Key,
        mut object: Value,
        owners: Vec<Owner>,
    ) -> Result<Arc<Value>, Status> {
        self.serial += 1;
        let serial = self.serial;
        let metadata = &mut object["metadata"];
        if !metadata["uid"].is_string() {
            let (high, low) = (self.origin >> 32, self.origin as u16);
            metadata["uid"] = json!(format!("{high:08x}-{low:04x}-4000-8000-{serial:012x}"));
        }
        metadata["creationTimestamp"] = json!(now());
        metadata["generation"] = json!(1);
        if kind.namespaced {
            metadata["namespace"] = json!(key.namespace);
        }
        if kind.plural == "namespaces" {
            metadata["labels"]["kubernetes.io/metadata.name"] = json!(key.name);
            object["status"]["phase"] = json!("Active");
        }
        if kind.plural == kinds::CRD_PLURAL {
            let defined = kinds::defined_by(&object)?;
            object["status"]["conditions"] = json!([
                { "type": "NamesAccepted", "status": "True" },
                { "type": "Established", "status": "True" },
            ]);
            self.kinds.push(Arc::new(defined));
        }
        Ok(self.commit(kind, key, None, object, owners))
    }

    /// Takes a new state of an object that is there.
    fn change(
        &mut self,
        kind: &KindInfo,
        key: &Key,
        old: &Arc<Value>,
        mut object: Value,
        owners: Vec<Owner>,
    ) -> Result<Arc<Value>, Status> {
        keep_identity(old, &mut object);
        if without_bookkeeping(old) == without_bookkeeping(&object) {
            if let Some(entry) = self.objects.get_mut(key) {
                entry.owners = owners;
            }
            return Ok(old.clone());
        }
        if desired(old) != desired(&object) {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or(0);
            object["metadata"]["generation"] = json!(generation + 1);
        }
        if kind.plural == kinds::CRD_PLURAL {
            let defined = kinds::defined_by(&object)?;
            self.kinds
                .retain(|it| (&it.group, &it.plural) != (&defined.group, &defined.plural));
            self.kinds.push(Arc::new(defined));
        }
        let object = self.commit(kind, key.clone(), Some(old.clone()), object, owners);
        let released = has_finalizers(old) && !has_finalizers(&object);
        if released && object["metadata"]["deletionTimestamp"].is_string() {
            return Ok(self.remove(key));
        }
        Ok(object)
    }

    fn commit(
        &mut self,
        kind: &KindInfo,
        key: Key,
        before: Option<Arc<Value>>,
        mut object: Value,
        owners: Vec<Owner>,
    ) -> Arc<Value> {
        self.revision += 1;
        let api_version = kind.api_version(&kind.versions[0]);
        let time = now();
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind.kind);
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.revision.to_string());
        metadata["managedFields"] = owners
            .iter()
            .map(|owner| owner.to_json(&api_version, &time))
            .collect();
        let object = Arc::new(object);
        self.log.push_back(Event {
            revision: self.revision,
            key: key.clone(),
            before,
            after: object.clone(),
            deleted: false,
        });
        let entry = Entry {
            object: object.clone(),
            owners,
        };
        self.objects.insert(key, entry);
        object
    }
}
