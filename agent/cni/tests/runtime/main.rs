//! Discovery and the plugin on real namespaces, and under a real container runtime.
//!
//! Needs root; the trials with containers also need containerd, runc and the CNI plugins of the Debian package
//! `containernetworking-plugins`. They take place in a network and mount namespace of their own, so that neither
//! the machine's network nor its `/run` is touched. Under the plugin's name this program *is* the plugin:
//! the trials install it by the code that installs the agent's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

mod containers;
mod cri;
mod discovery;
mod runtime;

use std::{
    env,
    process::{Command, ExitCode},
};

use libtest_mimic::{Arguments, Completion, Trial};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use undermesh_cni::plugin;

fn main() -> ExitCode {
    if env::args_os()
        .next()
        .is_some_and(|name| plugin::is_called_by(&name))
    {
        return plugin::main();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let root = nix::unistd::geteuid().is_root();
    if root {
        isolate();
    }
    let lacking = if root {
        None
    } else {
        Some("needs root".to_owned())
    };
    let lacking_runtime = lacking.clone().or_else(runtime::missing);
    let discovery = discovery::TESTS.iter().map(|test| (test, lacking.clone()));
    let containers = containers::TESTS
        .iter()
        .map(|test| (test, lacking_runtime.clone()));
    let trials = discovery.chain(containers).map(|((name, test), lacking)| {
        Trial::ignorable_test(*name, move || match lacking {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => {
                test();
                Ok(Completion::Completed)
            }
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A test by its name.
type Test = (&'static str, fn());

/// Leaves the machine's network, and its view of mounts, before any thread is started.
fn isolate() {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let raised = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(raised.unwrap().success());
}
