//! Network namespaces, each held by a bind mount at a path of its own.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process::enter_on_exec;
use crate::{Context, Error, Result};

/// Settings of every namespace: addresses work at once (no duplicate address detection), no router
/// advertisements.
const SETTINGS: [(&str, &str); 4] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
];

/// A network namespace that lives until it is dropped and its last process is gone.
#[derive(Debug)]
pub struct NetNs {
    path: PathBuf,
}

impl NetNs {
    /// Makes a namespace with its loopback up and holds it at `path`.
    ///
    /// # Errors
    /// When the namespace, its mount or its settings fail.
    pub fn create(path: &Path) -> Result<Self> {
        File::create(path).context(|| format!("create {}", path.display()))?;
        thread::scope(|scope| scope.spawn(|| hold_new_namespace(path)).join())
            .map_err(|_| Error::step("make a network namespace", "its thread panicked"))??;
        let netns = Self { path: path.into() };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The path that stands for the namespace, as `undermesh enroll --netns` takes it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread into the namespace.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn enter(&self) -> Result<()> {
        setns(self.open()?, CloneFlags::CLONE_NEWNET)
            .context(|| format!("enter {}", self.path.display()))
    }

    /// Opens the namespace for `setns(2)`.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn open(&self) -> Result<File> {
        File::open(&self.path).context(|| format!("open {}", self.path.display()))
    }

    /// Runs a batch of `ip` commands, one a line, inside the namespace.
    ///
    /// # Errors
    /// The first command that failed, in the words of `ip`.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        enter_on_exec(&mut command, self.open()?, None);
        let mut child = command
            .spawn()
            .context(|| "start ip (install the package iproute2)")?;
        let written = child
            .stdin
            .take()
            .map_or(Ok(()), |mut input| input.write_all(batch.as_bytes()));
        let output = child.wait_with_output().context(|| "wait for ip")?;
        written.context(|| "write to ip")?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::step(
            format!("ip -batch in {} of:\n{batch}\n", self.path.display()),
            String::from_utf8_lossy(&output.stderr),
        ))
    }

    /// Sets a sysctl of the namespace; `name` is a path below `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    write_sysctl(name, value)
                })
                .join()
        })
        .map_err(|_| Error::step("set a sysctl", "its thread panicked"))?
    }

    /// Lets go of the namespace: it is gone once no process and no open file holds it.
    pub fn release(&self) {
        // Fails when released before; there is nothing left to do then.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        self.release();
    }
}

fn hold_new_namespace(path: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context(|| "unshare the network")?;
    for (name, value) in SETTINGS {
        write_sysctl(name, value)?;
    }
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .context(|| format!("hold the namespace at {}", path.display()))
}

fn write_sysctl(name: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(name), value).context(|| format!("set {name} to {value}"))
}
