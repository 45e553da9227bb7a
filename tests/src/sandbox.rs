//! Moves the run into namespaces of its own, which vanish with it however it ends.
//!
//! Three processes share the work. The first stays outside: it waits, passes signals on and takes the
//! exit status over. Its child is process 1 of a new pid namespace: the kernel kills it when the first
//! one dies, and everything inside with it. Process 2 is the run itself, and process 1 reaps what it
//! leaves behind.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::exit;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, geteuid, pipe2, setsid};

use crate::cgroup::{Cgroup, Hierarchy};
use crate::{Context, Error, Result};

/// Where the run keeps its files: on a tmpfs that only the run sees.
const ROOT: &str = "/run/undermesh-testbed";

/// Open files that a run may need: thousands of connections, both ends in one process.
const OPEN_FILES: u64 = 65_536;

/// Signals that a user or a supervisor sends to end a run, and that reach process 2.
const FORWARDED: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// The namespaces of a run: its own pids, mounts, network and cgroup.
#[derive(Debug)]
pub struct Sandbox {
    root: PathBuf,
    cgroup: Cgroup,
}

impl Sandbox {
    /// Enters the sandbox and returns inside it. The calling process never returns: it waits for the
    /// run and exits with its status.
    ///
    /// # Errors
    /// [`Error::NotRoot`] without root; otherwise the step that failed.
    pub fn enter() -> Result<Self> {
        if !geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        require_one_thread()?;
        let hierarchy = Hierarchy::find()?;
        hierarchy.sweep();
        let cgroup = hierarchy.create_run()?;
        let mask = block_signals()?;
        let (alive, held) = pipe2(OFlag::O_CLOEXEC).context(|| "make a pipe")?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET)
            .context(|| "make namespaces (pid, mount, network)")?;
        // SAFETY: the process has one thread (checked above), so the child may go on as usual.
        match unsafe { fork() }.context(|| "fork process 1 of the sandbox")? {
            ForkResult::Parent { child } => {
                drop(alive);
                let status = supervise(child);
                hierarchy.end_run(&cgroup);
                exit(status)
            }
            ForkResult::Child => {
                drop(held);
                become_first_process(&alive)?;
                fork_run(&mask)?;
                Self::settle(cgroup)
            }
        }
    }

    /// Where the run keeps its files.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The cgroup of the run; the process itself is in it.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    fn settle(cgroup: Cgroup) -> Result<Self> {
        cgroup.join()?;
        raise_open_files()?;
        fs::create_dir_all(ROOT).context(|| format!("create {ROOT}"))?;
        Ok(Self {
            root: ROOT.into(),
            cgroup,
        })
    }
}

fn require_one_thread() -> Result<()> {
    let threads = fs::read_dir("/proc/self/task")
        .context(|| "count the threads of this process")?
        .count();
    if threads == 1 {
        return Ok(());
    }
    Err(Error::step(
        "enter the sandbox",
        format!("the process has {threads} threads already; enter it first thing in main"),
    ))
}

/// Blocks the signals that [`supervise`] waits for and returns the mask that was in force.
fn block_signals() -> Result<SigSet> {
    let mask = SigSet::thread_get_mask().context(|| "read the signal mask")?;
    supervised_signals()
        .thread_block()
        .context(|| "block signals")?;
    Ok(mask)
}

fn supervised_signals() -> SigSet {
    let mut signals: SigSet = FORWARDED.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    signals
}

/// Waits for `child`, passing signals on and reaping every other child; returns its exit status, or
/// 128 and the signal that ended it.
fn supervise(child: Pid) -> i32 {
    let signals = supervised_signals();
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap(child) {
                    return status;
                }
            }
            Ok(signal) => {
                // The child may have ended already; its SIGCHLD comes next.
                let _ = kill(child, signal);
            }
            Err(_) => return 1,
        }
    }
}

fn reap(child: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Some(128 + signal as i32);
            }
            Ok(WaitStatus::StillAlive) => return None,
            Err(Errno::EINTR) | Ok(_) => {}
            Err(_) => return Some(1),
        }
    }
}

fn become_first_process(parent: &OwnedFd) -> Result<()> {
    // A session of its own: a terminal's Ctrl-C then reaches the run once, through the first process.
    setsid().context(|| "start a session")?;
    set_pdeathsig(Signal::SIGKILL).context(|| "ask to die with the parent")?;
    require_parent(parent)?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .context(|| "make mounts private")?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::empty(),
        nothing,
    )
    .context(|| "mount /proc")?;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .context(|| "mount a tmpfs on /run")
}

/// The parent may have died before the death signal was asked for; its end of the pipe tells.
fn require_parent(alive: &OwnedFd) -> Result<()> {
    let mut polled = [PollFd::new(alive.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).context(|| "look for the parent")?;
    let gone = polled[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLHUP));
    if gone {
        exit(1);
    }
    Ok(())
}

/// Forks the run: returns in process 2, and process 1 exits with its status.
fn fork_run(mask: &SigSet) -> Result<()> {
    // SAFETY: process 1 has one thread, as its parent had, so the child may go on as usual.
    match unsafe { fork() }.context(|| "fork the run")? {
        ForkResult::Parent { child } => exit(supervise(child)),
        ForkResult::Child => mask.thread_set_mask().context(|| "restore the signal mask"),
    }
}

/// Raises the limit of open files as far as the caller's hard limit lets it.
fn raise_open_files() -> Result<()> {
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context(|| "read the limit of open files")?;
    let wanted = OPEN_FILES.min(hard).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
        .context(|| format!("raise the limit of open files to {wanted}"))
}
