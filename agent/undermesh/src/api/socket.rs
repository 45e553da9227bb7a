//! The agent's socket: one agent a run directory, only root may open it.
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// Name of the socket in the run directory.
pub const SOCKET: &str = "api.sock";
/// Held by the running agent, so that two that start at once do not both find the socket stale.
const LOCK: &str = "agent.lock";

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// An agent lives in this run directory.
    #[error("another agent runs in {}; stop it first, or give this one another --run-dir", .0.display())]
    Running(PathBuf),
    /// Something that is not a socket has its name.
    #[error("{} is not a socket; move it away", .0.display())]
    Occupied(PathBuf),
    /// The system refused.
    #[error("{} cannot be set up ({error}); run the agent as root, with a --run-dir it may write to", path.display())]
    System {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A run directory that this process has to itself, and the socket in it. Dropping it removes the socket.
#[derive(Debug)]
pub struct RunDirectory {
    socket: PathBuf,
    _lock: Flock<File>,
}

/// Takes the run directory and listens on its socket.
///
/// # Errors
/// When another agent runs there, or the system refuses.
pub fn bind(directory: &Path) -> Result<(RunDirectory, UnixListener), SocketError> {
    let created = DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory);
    created.map_err(|error| system(directory, error))?;
    let lock = lock(directory)?;
    let socket = directory.join(SOCKET);
    check_stale(directory, &socket)?;
    let listener = listen(directory, &socket)?;
    Ok((
        RunDirectory {
            socket,
            _lock: lock,
        },
        listener,
    ))
}

fn lock(directory: &Path) -> Result<Flock<File>, SocketError> {
    let path = directory.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|error| system(&path, error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => SocketError::Running(directory.to_owned()),
        other => system(&path, other.into()),
    })
}

/// What has the socket's name may be replaced when it is a socket on which nobody answers.
fn check_stale(directory: &Path, socket: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(system(socket, error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(SocketError::Occupied(socket.to_owned()))
        }
        Ok(_) if UnixStream::connect(socket).is_ok() => {
            Err(SocketError::Running(directory.to_owned()))
        }
        Ok(_) => Ok(()),
    }
}

/// Binds under another name and renames, so that the socket never exists with open permissions.
fn listen(directory: &Path, socket: &Path) -> Result<UnixListener, SocketError> {
    let new = directory.join("api.sock.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system(&new, error)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(|error| system(&new, error))?;
    let ready = fs::set_permissions(&new, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&new, socket))
        .and_then(|()| listener.set_nonblocking(true));
    ready.map_err(|error| system(socket, error))?;
    Ok(listener)
}

fn system(path: &Path, error: io::Error) -> SocketError {
    SocketError::System {
        path: path.to_owned(),
        error,
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the socket was removed by someone else");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_may_open_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("a/b");
        let (_guard, _listener) = bind(&run).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&run.join(SOCKET)), 0o600);
        assert_eq!(mode(&run), 0o755);
    }

    #[test]
    fn a_second_agent_is_told_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let first = bind(directory.path()).unwrap();
        let refused = bind(directory.path()).unwrap_err();
        assert!(matches!(refused, SocketError::Running(_)), "{refused}");
        drop(first);
        assert!(!directory.path().join(SOCKET).exists());
        assert!(bind(directory.path()).is_ok());
    }

    #[test]
    fn what_a_killed_agent_left_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join(SOCKET);
        drop(UnixListener::bind(&socket).unwrap());
        drop(bind(directory.path()).unwrap());

        let answering = UnixListener::bind(&socket).unwrap();
        assert!(matches!(
            bind(directory.path()),
            Err(SocketError::Running(_))
        ));
        drop(answering);
        fs::remove_file(&socket).unwrap();

        fs::write(&socket, "precious").unwrap();
        assert!(matches!(
            bind(directory.path()),
            Err(SocketError::Occupied(_))
        ));
        assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    }
}
