//! A place where programs and test code run: a network namespace with a cgroup.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::journal::Journal;
use crate::netns::NetNs;
use crate::process::{Output, Running, enter_on_exec, run_to_end};
use crate::{Context, Error, Result};

/// How long a program that should end by itself may run.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// Stack of a thread of test code; thousands run at once.
const STACK: usize = 256 * 1024;

/// A network namespace with a cgroup and a folder.
#[derive(Debug)]
pub struct Place {
    label: String,
    netns: Arc<NetNs>,
    cgroup: Cgroup,
    folder: PathBuf,
    journal: Arc<Journal>,
}

impl Place {
    /// Makes the namespace and the folder of a place below `parent`.
    ///
    /// # Errors
    /// When either cannot be made.
    pub fn create(
        parent: &Path,
        label: &str,
        cgroup: Cgroup,
        journal: &Arc<Journal>,
    ) -> Result<Self> {
        let folder = parent.join(label.replace('/', "_"));
        fs::create_dir_all(&folder).context(|| format!("create {}", folder.display()))?;
        Ok(Self {
            label: label.to_owned(),
            netns: Arc::new(NetNs::create(&folder.join("netns"))?),
            cgroup,
            folder,
            journal: Arc::clone(journal),
        })
    }

    /// Another place in the same network namespace, with a cgroup of its own: other processes of the same host.
    #[must_use]
    pub fn beside(&self, label: &str, cgroup: Cgroup) -> Self {
        Self {
            label: format!("{}/{label}", self.label),
            netns: Arc::clone(&self.netns),
            cgroup,
            folder: self.folder.clone(),
            journal: Arc::clone(&self.journal),
        }
    }

    /// The name of the place in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The cgroup of the programs.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A folder for the files of the programs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The journal that takes what the programs print.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Runs `code` on a thread that stands in this place, and returns what it returns.
    ///
    /// # Errors
    /// When the place cannot be entered or the code panics.
    pub fn run<T: Send>(&self, code: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(code())
                })
                .join()
        })
        .map_err(|panic| Error::step(format!("test code in {}", self.label), reason(&*panic)))?
    }

    /// Starts `code` on a thread that stands in this place.
    ///
    /// # Errors
    /// When the place cannot be entered.
    pub fn background<T: Send + 'static>(
        &self,
        code: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        self.run(|| thread::Builder::new().stack_size(STACK).spawn(code))?
            .context(|| format!("start a thread in {}", self.label))
    }

    /// A command that will run in this place, with a clean environment.
    ///
    /// # Errors
    /// When the place is gone.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Command> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", search_path())
            .env("HOME", &self.folder)
            .env("TMPDIR", &self.folder)
            .env("LC_ALL", "C");
        enter_on_exec(
            &mut command,
            self.netns.open()?,
            Some(self.cgroup.processes()?),
        );
        Ok(command)
    }

    /// Starts a program that goes on running; its output goes to the journal.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Running> {
        let label = format!("{program} in {}", self.label);
        let lines = self.journal.open(&label);
        Running::start(&label, &mut self.command(program, arguments)?, lines)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end within a minute.
    pub fn output<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Output> {
        self.output_within(RUN_TIMEOUT, program, arguments)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end within `timeout`.
    pub fn output_within<A: AsRef<OsStr>>(
        &self,
        timeout: Duration,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Output> {
        let label = format!("{program} in {}", self.label);
        run_to_end(&label, &mut self.command(program, arguments)?, timeout)
    }

    /// Fetches `path` from an HTTP server with curl.
    ///
    /// # Errors
    /// When curl cannot be started; a failed fetch is in the output.
    pub fn curl(&self, address: IpAddr, port: u16, path: &str) -> Result<Output> {
        let url = format!("http://{}{path}", SocketAddr::new(address, port));
        self.output(
            "curl",
            [
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "20",
                &url,
            ],
        )
    }

    fn enter(&self) -> Result<()> {
        self.netns.enter()?;
        self.cgroup.join_thread()
    }
}

/// The caller's search path, with the places where Debian keeps what only root or PostgreSQL runs.
pub fn search_path() -> String {
    let mut path = std::env::var("PATH").unwrap_or_default();
    path.push_str(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    for version in fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
    {
        path.push_str(&format!(":{}", version.path().join("bin").display()));
    }
    path
}

/// Whether `program` is on the [`search_path`].
pub fn installed(program: &str) -> bool {
    search_path()
        .split(':')
        .any(|folder| Path::new(folder).join(program).is_file())
}

fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}
