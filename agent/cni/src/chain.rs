//! Puts the plugin into the node's CNI configuration, and keeps it there.
//!
//! Container runtimes take the first configuration of a folder, in the order of names, and run its plugins from
//! another folder. [`Installer`] copies the plugin there and adds it to the end of the chain;
//! [`Keeper`] repairs both when somebody else rewrites or removes them. Each file is written beside its place,
//! flushed, and renamed: a container runtime never reads half of one.
mod conflist;
mod file;
mod keeper;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::plugin::{self, DEFAULT_TIMEOUT, Options, WhenAway};

pub use conflist::ConflistError;
pub use keeper::Keeper;

/// Kinds of files that container runtimes read as configurations (libcni, `ConfFiles`).
const KINDS: [&str; 3] = ["conf", "conflist", "json"];
/// What is added to the name of a configuration that a list took the place of.
const REPLACED: &str = "undermesh-replaced";
/// Longest configuration that is read.
const MAX_FILE: u64 = 1024 * 1024;

/// What to install, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program to copy: this agent's own, which is the plugin under its other name.
    pub program: PathBuf,
    /// The folder of the host's CNI plugins, such as `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// The folder of the host's CNI configurations, such as `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// The agent's socket, by its path on the host.
    pub socket: PathBuf,
    /// How long the plugin waits for the agent.
    pub timeout: Duration,
    /// What becomes of pods while the agent is away.
    pub when_agent_is_away: WhenAway,
    /// Namespaces whose pods never wait for the agent: those outside the mesh, and the agent's own.
    pub exclude_namespaces: BTreeSet<String>,
}

impl Settings {
    /// Installs `program` for an agent at `socket` whose own namespace is `own_namespace`, in the folders
    /// that container runtimes use unless they are told otherwise.
    pub fn new(
        program: impl Into<PathBuf>,
        socket: impl Into<PathBuf>,
        own_namespace: &str,
    ) -> Self {
        Self {
            program: program.into(),
            bin_dir: "/opt/cni/bin".into(),
            conf_dir: "/etc/cni/net.d".into(),
            socket: socket.into(),
            timeout: DEFAULT_TIMEOUT,
            when_agent_is_away: WhenAway::Refuse,
            exclude_namespaces: BTreeSet::from([
                "kube-system".to_owned(),
                own_namespace.to_owned(),
            ]),
        }
    }
}

/// Why the plugin is not in the chain.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A file cannot be read or written.
    #[error("cannot use {}: {source}; mount the host's folder into the agent, writable", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration cannot be changed.
    #[error("{} cannot be changed: {source}", path.display())]
    Conflist {
        /// The configuration.
        path: PathBuf,
        /// What is wrong with it.
        source: ConflistError,
    },
    /// The changes of the folders cannot be followed.
    #[error(
        "changes of the CNI folders cannot be followed: {0}; raise fs.inotify.max_user_instances"
    )]
    Watch(io::Error),
}

/// How the chain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The plugin is in this configuration.
    Chained(PathBuf),
    /// There is no configuration yet: the node's network is not set up.
    NoNetwork,
}

/// Installs and removes the plugin.
#[derive(Clone, Debug)]
pub struct Installer {
    settings: Settings,
}

impl Installer {
    /// An installer of these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Makes sure that the plugin is there and in the chain; where both hold, nothing is written. Blocks.
    ///
    /// # Errors
    /// When a file cannot be read or written, or the configuration is not one.
    pub fn ensure(&self) -> Result<State, ChainError> {
        // The plugin first: a chain that names what is not there stops every pod.
        self.ensure_program()?;
        let Some(path) = self.first()? else {
            return Ok(State::NoNetwork);
        };
        let is_list = path.extension() == Some(OsStr::new("conflist"));
        let text = read(&path)?;
        let changed = if is_list {
            conflist::insert(&text, &self.plugin())
        } else {
            conflist::convert(&text, &self.plugin()).map(Some)
        };
        let list = path.with_extension("conflist");
        if let Some(text) = changed.map_err(conflist_error(&path))? {
            file::write(&list, &text, file::mode(&path)?).map_err(at(&list))?;
            tracing::info!(path = %list.display(), "the plugin was put into the CNI configuration");
        }
        if !is_list {
            // Its name comes before that of the list, so it has to go for the list to be taken.
            let replaced = replaced(&path);
            fs::rename(&path, &replaced).map_err(at(&replaced))?;
        }
        Ok(State::Chained(list))
    }

    /// Takes the plugin out of every configuration, and removes it. Blocks.
    ///
    /// # Errors
    /// When a file cannot be read or written. It can be called again.
    pub fn remove(&self) -> Result<(), ChainError> {
        // The chain first, as the plugin is named in it.
        for path in self.configurations(REPLACED)? {
            put_back(&path)?;
        }
        for path in self.configurations("conflist")? {
            take_out(&path)?;
        }
        file::remove(&self.program()).map_err(at(&self.program()))
    }

    fn ensure_program(&self) -> Result<(), ChainError> {
        let Settings {
            program, bin_dir, ..
        } = &self.settings;
        let there = self.program();
        if file::same(program, &there).map_err(at(program))? {
            return Ok(());
        }
        fs::create_dir_all(bin_dir).map_err(at(bin_dir))?;
        file::copy(program, &there).map_err(at(&there))?;
        tracing::info!(path = %there.display(), "the plugin was installed");
        Ok(())
    }

    /// The configuration that container runtimes take.
    fn first(&self) -> Result<Option<PathBuf>, ChainError> {
        let is_read = |path: &PathBuf| {
            let kind = path.extension().and_then(OsStr::to_str);
            kind.is_some_and(|kind| KINDS.contains(&kind)) && !path.is_dir()
        };
        Ok(entries(&self.settings.conf_dir)?.into_iter().find(is_read))
    }

    fn configurations(&self, kind: &str) -> Result<Vec<PathBuf>, ChainError> {
        let mut paths = entries(&self.settings.conf_dir)?;
        paths.retain(|path| path.extension() == Some(OsStr::new(kind)));
        Ok(paths)
    }

    fn program(&self) -> PathBuf {
        self.settings.bin_dir.join(plugin::NAME)
    }

    fn plugin(&self) -> conflist::Plugin {
        let Settings {
            socket,
            timeout,
            when_agent_is_away,
            exclude_namespaces,
            ..
        } = &self.settings;
        conflist::Plugin {
            kind: plugin::NAME,
            options: Options {
                socket: socket.clone(),
                timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX),
                when_agent_is_away: *when_agent_is_away,
                exclude_namespaces: exclude_namespaces.clone(),
            },
        }
    }
}

fn take_out(path: &Path) -> Result<(), ChainError> {
    // What cannot be read as a list was not changed by us.
    let Ok(Some(text)) = conflist::remove(&read(path)?, plugin::NAME) else {
        return Ok(());
    };
    file::write(path, &text, file::mode(path)?).map_err(at(path))
}

/// Puts back a configuration that a list took the place of, unless its owner has written a new one.
fn put_back(replaced: &Path) -> Result<(), ChainError> {
    let original = replaced.with_extension("");
    if original.exists() {
        return file::remove(replaced).map_err(at(replaced));
    }
    // From here on the original is taken, for its name comes first.
    fs::rename(replaced, &original).map_err(at(&original))?;
    let list = original.with_extension("conflist");
    file::remove(&list).map_err(at(&list))
}

/// The entries of a folder, in the order of their names; none where the folder is missing.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, ChainError> {
    let read = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(at(folder))?,
    };
    let paths = read.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<Result<_, _>>().map_err(at(folder))?;
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>, ChainError> {
    file::read(path, MAX_FILE).map_err(at(path))
}

fn replaced(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(REPLACED);
    name.into()
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ChainError {
    let path = path.to_owned();
    move |source| ChainError::File { path, source }
}

fn conflist_error(path: &Path) -> impl FnOnce(ConflistError) -> ChainError {
    let path = path.to_owned();
    move |source| ChainError::Conflist { path, source }
}

#[cfg(test)]
mod tests;
