//! The hooks on a machine's slice, and the notes of where its sockets are bound.
//!
//! The hooks are attached first, and then the listeners are noted that were there before. The end of such a listener
//! can be missed: it may be closed between being listed and being noted, and one of MPTCP's is closed inside the
//! kernel. So their notes are compared with the list each time.
use std::{collections::BTreeSet, path::Path};

use aya::programs::{Program, TestRun as _, TestRunOptions};
use undermesh_abi::{Binding, Found, LISTED, Noting};

use crate::{
    bpf::PinnedLink,
    error::CaptureError,
    features,
    netns::Netns,
    programs::{self, Cgroup, LoadError, Pins, Programs},
    slice::{Slice, SliceError},
    sockdiag::{self, Listener},
};

/// In the order of attachment: what forgets is there before what notes.
const HOOKS: [&str; 4] = ["forget_bind", "note_listen", "note_bind4", "note_bind6"];
/// In the place of a namespace's cookie: no namespace has it.
const NO_MACHINE: u64 = 0;
/// The programs that work on the notes for user space.
const NOTE_FOUND: &str = "note_found";
const FORGET_FOUND: &str = "forget_found";
/// How often the listeners are listed before they must have come to rest; once takes less than a millisecond.
const ROUNDS: usize = 64;

/// Attaches the hooks to the cgroup, or takes over those of an earlier agent, and notes the listeners that are
/// there already.
pub(crate) fn watch(
    programs: &mut Programs,
    pins: &Pins,
    path: &Path,
    netns: &Netns,
) -> Result<(), CaptureError> {
    let cgroup = Cgroup::open(path)?;
    if !is_watched(pins, &cgroup)? {
        // Nothing took notes meanwhile, so those of an earlier agent may be wrong.
        release(programs, pins)?;
    }
    programs.machine.set(0, netns.cookie(), 0)?;
    for name in HOOKS {
        programs::attach(&mut programs.object, name, pins, &cgroup)?;
    }
    find(programs, path, netns)
}

/// Whether this is the machine that is watched.
pub(crate) fn is_machine(programs: &Programs, cookie: u64) -> Result<bool, CaptureError> {
    Ok(programs.machine.get(&0, 0)? == cookie)
}

/// Detaches the hooks and removes all notes.
pub(crate) fn release(programs: &mut Programs, pins: &Pins) -> Result<(), CaptureError> {
    for name in HOOKS {
        programs::remove_link(&pins.links().join(name))?;
    }
    let sockets: Vec<u64> = programs.bound.keys().collect::<Result<_, _>>()?;
    for socket in sockets {
        programs::absent_is_fine(programs.bound.remove(&socket))?;
    }
    let ports: Vec<u32> = programs.ports.keys().collect::<Result<_, _>>()?;
    for port in ports {
        programs::absent_is_fine(programs.ports.remove(&port))?;
    }
    Ok(programs.machine.set(0, NO_MACHINE, 0)?)
}

fn is_watched(pins: &Pins, cgroup: &Cgroup) -> Result<bool, LoadError> {
    for name in HOOKS {
        let path = pins.links().join(name);
        let failed = |source| LoadError::Link {
            path: path.clone(),
            source,
        };
        let Some(link) = PinnedLink::open(&path).map_err(failed)? else {
            return Ok(false);
        };
        if !cgroup.is_of(&link).map_err(failed)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Notes all listeners of the slice, until two lists are the same; then forgets those that are closed.
///
/// The list is not one moment's: the kernel may leave one out when another one goes meanwhile, which was listed
/// then and is missed in the next list.
fn find(programs: &mut Programs, path: &Path, netns: &Netns) -> Result<(), CaptureError> {
    let slice = Slice::read(path)?;
    let mut before = BTreeSet::new();
    for _ in 0..ROUNDS {
        let present = listeners(netns)?;
        let cookies: BTreeSet<u64> = present.iter().map(|listener| listener.cookie).collect();
        if before == cookies {
            return forget_closed(programs, &cookies);
        }
        for listener in present {
            if slice.holds(listener.cgroup) && !before.contains(&listener.cookie) {
                note(programs, &listener)?;
            }
        }
        before = cookies;
    }
    Err(SliceError::Restless(path.to_owned()).into())
}

fn listeners(netns: &Netns) -> Result<Vec<Listener>, CaptureError> {
    Ok(netns
        .run(sockdiag::listeners)?
        .map_err(SliceError::Sockets)?)
}

fn note(programs: &mut Programs, listener: &Listener) -> Result<(), CaptureError> {
    let found = Found {
        socket: listener.cookie,
        binding: Binding::listed(listener.end),
    };
    if run(programs, NOTE_FOUND, &found)? == Noting::Noted as u32 {
        return Ok(());
    }
    Err(SliceError::Full(listener.end).into())
}

fn forget_closed(programs: &mut Programs, present: &BTreeSet<u64>) -> Result<(), CaptureError> {
    let noted: Vec<(u64, Binding)> = programs.bound.iter().collect::<Result<_, _>>()?;
    for (socket, binding) in noted {
        if binding.listed == LISTED && !present.contains(&socket) {
            run(programs, FORGET_FOUND, &Found { socket, binding })?;
        }
    }
    Ok(())
}

/// Runs a program on a socket (`BPF_PROG_TEST_RUN`), and returns its result.
fn run(programs: &mut Programs, name: &'static str, found: &Found) -> Result<u32, LoadError> {
    let Some(Program::SchedClassifier(program)) = programs.object.program_mut(name) else {
        return Err(LoadError::Incomplete(name));
    };
    if program.fd().is_err() {
        program
            .load()
            .map_err(|source| features::refused(name, source))?;
    }
    let options = TestRunOptions {
        data_in: Some(&found.to_bytes()),
        ..TestRunOptions::new()
    };
    let result = program
        .test_run(options)
        .map_err(|source| programs::attaching(name, source))?;
    Ok(result.return_value)
}
