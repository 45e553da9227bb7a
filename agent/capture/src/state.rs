//! What is known of each enrolled pod on disk, so that a new agent can take over.
use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{enrollment::Enrollment, sysctl::Previous};

/// Version of the file's form.
const VERSION: u32 = 1;
/// Longest file that is read.
const MAX_FILE: u64 = 64 * 1024;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const SUFFIX: &str = "json";

/// Why the state could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file or folder cannot be read or written.
    #[error("cannot use the state in {path}: {source}; check that it can be written and has room")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else.
    #[error(
        "{path} is not a pod's state: {reason}; remove it and enroll the pod again, \
         until then its connections are refused"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another agent uses the folder.
    #[error("another agent works with {0}; stop it first, or give this one another folder")]
    InUse(PathBuf),
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Intent {
    /// It is to be enrolled.
    Enroll,
    /// It is to be released.
    Release,
}

/// The state of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PodState {
    version: u32,
    boot_id: String,
    pub(crate) cookie: u64,
    pub(crate) intent: Intent,
    pub(crate) enrollment: Enrollment,
    pub(crate) previous: Previous,
}

/// The folder of state files, held by one agent at a time.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    boot_id: String,
    /// The lock goes with the agent, however it ends.
    _lock: Flock<fs::File>,
}

impl Store {
    /// Opens the state below `state_dir`, making the folder where it is missing.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, StateError> {
        let folder = state_dir.join("pods");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(at(&folder))?;
        let lock = lock(&state_dir.join("lock"))?;
        let boot_id = fs::read_to_string(BOOT_ID).map_err(at(Path::new(BOOT_ID)))?;
        Ok(Self {
            folder,
            boot_id: boot_id.trim().to_owned(),
            _lock: lock,
        })
    }

    /// Writes the state of a pod, in one step.
    pub(crate) fn save(
        &self,
        cookie: u64,
        intent: Intent,
        enrollment: &Enrollment,
        previous: &Previous,
    ) -> Result<(), StateError> {
        let state = PodState {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            cookie,
            intent,
            enrollment: enrollment.clone(),
            previous: previous.clone(),
        };
        let path = self.path(cookie);
        let text = serde_json::to_vec_pretty(&state).map_err(|error| at(&path)(error.into()))?;
        let new = path.with_extension("new");
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(at(&path))
    }

    /// The settings from before a pod was enrolled, where its state is known.
    pub(crate) fn previous(&self, cookie: u64) -> Option<Previous> {
        let state = read(&self.path(cookie)).ok()?;
        (state.boot_id == self.boot_id).then_some(state.previous)
    }

    /// Removes the state of a pod; one that is gone already is as good.
    pub(crate) fn remove(&self, cookie: u64) -> Result<(), StateError> {
        let path = self.path(cookie);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Reads all states of this boot, and removes those of earlier ones: their namespaces are gone.
    pub(crate) fn list(&self) -> Result<Vec<Result<PodState, StateError>>, StateError> {
        let mut states = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(at(&self.folder))? {
            let path = entry.map_err(at(&self.folder))?.path();
            if path.extension().is_none_or(|extension| extension != SUFFIX) {
                continue;
            }
            match read(&path) {
                Ok(state) if state.boot_id != self.boot_id => {
                    fs::remove_file(&path).map_err(at(&path))?;
                }
                Ok(state) if self.path(state.cookie) != path => {
                    let reason = "its name is not that of its namespace".to_owned();
                    states.push(Err(StateError::Unreadable { path, reason }));
                }
                result => states.push(result),
            }
        }
        Ok(states)
    }

    fn path(&self, cookie: u64) -> PathBuf {
        self.folder.join(cookie.to_string()).with_extension(SUFFIX)
    }
}

fn lock(path: &Path) -> Result<Flock<fs::File>, StateError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(at(path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| StateError::InUse(path.parent().unwrap_or(path).to_owned()))
}

fn read(path: &Path) -> Result<PodState, StateError> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
        .map_err(at(path))?;
    let unreadable = |reason| StateError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let state: PodState =
        serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
    if state.version != VERSION {
        return Err(unreadable(format!(
            "its version is {}, not {VERSION}",
            state.version
        )));
    }
    Ok(state)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enrollment() -> Enrollment {
        Enrollment::new("/run/netns/web", "shop", "web-0", "web").unwrap()
    }

    #[test]
    fn a_state_is_read_as_it_was_written_and_only_root_can_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store
            .save(7, Intent::Enroll, &enrollment(), &Previous::default())
            .unwrap();
        let states = store.list().unwrap();
        let state = states[0].as_ref().unwrap();
        assert_eq!((state.cookie, state.intent), (7, Intent::Enroll));
        assert_eq!(state.enrollment, enrollment());
        let mode = fs::metadata(folder.path().join("pods/7.json"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        store.remove(7).unwrap();
        store.remove(7).unwrap();
        assert!(store.list().unwrap().is_empty());
    }

    #[test]
    fn states_of_an_earlier_boot_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store
            .save(7, Intent::Enroll, &enrollment(), &Previous::default())
            .unwrap();
        store.boot_id = "another".to_owned();
        assert!(store.list().unwrap().is_empty());
        assert!(!folder.path().join("pods/7.json").exists());
    }

    #[test]
    fn a_file_cut_short_or_renamed_is_reported_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store
            .save(7, Intent::Enroll, &enrollment(), &Previous::default())
            .unwrap();
        let whole = fs::read(folder.path().join("pods/7.json")).unwrap();
        fs::write(folder.path().join("pods/8.json"), &whole).unwrap();
        fs::write(folder.path().join("pods/9.json"), &whole[..whole.len() / 2]).unwrap();
        let states = store.list().unwrap();
        assert_eq!(states.iter().filter(|state| state.is_ok()).count(), 1);
        assert_eq!(states.len(), 3);
    }

    #[test]
    fn two_agents_do_not_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        assert!(matches!(
            Store::open(folder.path()),
            Err(StateError::InUse(_))
        ));
        drop(first);
        assert!(Store::open(folder.path()).is_ok());
    }
}
