//! Processes that the testbed starts inside a namespace and a cgroup, and that end with their handle.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::journal::Lines;
use crate::{Context, Error, Result};

/// How long a server may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause between two looks at a process's listening sockets, which no event announces.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Makes the process of `command` enter a network namespace and a cgroup before its program starts.
pub fn enter_on_exec(command: &mut Command, netns: File, cgroup: Option<File>) {
    let enter = move || {
        setns(&netns, CloneFlags::CLONE_NEWNET)?;
        match &cgroup {
            Some(processes) => (&*processes).write_all(b"0"),
            None => Ok(()),
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls, setns(2) and write(2). Both
    // are safe there, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(enter) };
}

/// A program that runs until it ends by itself or its handle is dropped; its children go with it.
#[derive(Debug)]
pub struct Running {
    label: String,
    child: Child,
    ended: OwnedFd,
    lines: Arc<Lines>,
}

impl Running {
    /// Starts `command`; what it prints goes to `lines`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(label: &str, command: &mut Command, lines: Arc<Lines>) -> Result<Self> {
        let mut child = spawn(label, command)?;
        if let Some(output) = child.stdout.take() {
            lines.follow(output);
        }
        if let Some(output) = child.stderr.take() {
            lines.follow(output);
        }
        let ended = pidfd(child.id())?;
        Ok(Self {
            label: label.to_owned(),
            child,
            ended,
            lines,
        })
    }

    /// The process id, as the sandbox numbers it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the program has printed.
    pub fn lines(&self) -> &Arc<Lines> {
        &self.lines
    }

    /// Waits until the program listens on TCP `port`.
    ///
    /// # Errors
    /// When the program ends before that, or takes too long.
    pub fn wait_listening(&mut self, port: u16) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !listens(self.pid(), port) {
            if let Some(status) = self.exited()? {
                return Err(Error::step(
                    format!("wait until {} listens on port {port}", self.label),
                    format!(
                        "it ended with {status}: {}",
                        self.lines.since(0).join(" | ")
                    ),
                ));
            }
            if Instant::now() > deadline {
                return Err(Error::step(
                    format!("wait until {} listens on port {port}", self.label),
                    "it took too long",
                ));
            }
            thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// The exit status, if the program has ended.
    ///
    /// # Errors
    /// When the kernel does not know the process.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .context(|| format!("look at {}", self.label))
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid(self.child.id()), signal).context(|| format!("send {signal} to {}", self.label))
    }

    /// Waits until the program has ended.
    ///
    /// # Errors
    /// When it is still there after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        if !wait_ended(&self.ended, timeout)? {
            return Err(Error::step(
                format!("wait for the end of {}", self.label),
                format!("it still runs after {timeout:?}"),
            ));
        }
        self.child
            .wait()
            .context(|| format!("wait for {}", self.label))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The group may be gone already; the wait below then returns at once.
        let _ = killpg(pid(self.child.id()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// What a program that ran to its end has printed.
#[derive(Debug)]
pub struct Output {
    /// The program and where it ran.
    pub label: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output as text, without white space at its ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Standard output as text, when the program ended well.
    ///
    /// # Errors
    /// The program's own words on standard error when it did not.
    pub fn success(&self) -> Result<String> {
        if self.status.success() {
            return Ok(self.text());
        }
        Err(Error::step(
            &self.label,
            format!("{}: {} {}", self.status, self.stderr.trim(), self.text()),
        ))
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// When it cannot be started or still runs after `timeout`; it is then killed.
pub fn run_to_end(label: &str, command: &mut Command, timeout: Duration) -> Result<Output> {
    let mut child = spawn(label, command)?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let ended = wait_ended(&pidfd(child.id())?, timeout)?;
    if !ended {
        // It may end by itself at this very moment; the wait below covers both.
        let _ = killpg(pid(child.id()), Signal::SIGKILL);
    }
    let status = child.wait().context(|| format!("wait for {label}"))?;
    if !ended {
        return Err(Error::step(
            label,
            format!("still running after {timeout:?}"),
        ));
    }
    let text = |bytes: Option<thread::JoinHandle<Vec<u8>>>| {
        bytes
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default()
    };
    Ok(Output {
        label: label.to_owned(),
        status,
        stdout: text(stdout),
        stderr: String::from_utf8_lossy(&text(stderr)).into_owned(),
    })
}

fn spawn(label: &str, command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context(|| format!("start {label}"))
}

fn collect(mut source: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still what the program said.
        let _ = source.read_to_end(&mut bytes);
        bytes
    })
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed())
}

/// A file that becomes readable when the process ends (pidfd_open(2)).
fn pidfd(id: u32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes a number and flags and touches no memory of this process.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
    let fd = Errno::result(result).context(|| format!("watch process {id}"))?;
    let fd = i32::try_from(fd).context(|| "take the number of a pidfd")?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn wait_ended(process: &OwnedFd, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(error) => {
                return Err(Error::step(
                    format!("wait on pidfd {}", process.as_raw_fd()),
                    error,
                ));
            }
        }
    }
}

/// Whether anything in the network namespace of process `id` listens on TCP `port`.
fn listens(id: u32, port: u16) -> bool {
    let local_port = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let sockets =
            std::fs::read_to_string(format!("/proc/{id}/net/{table}")).unwrap_or_default();
        sockets.lines().skip(1).any(|socket| {
            let mut fields = socket.split_ascii_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            // The fourth column is the state; 0A is TCP_LISTEN.
            local.ends_with(&local_port) && fields.nth(1) == Some("0A")
        })
    })
}
