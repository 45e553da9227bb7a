//! One question to the agent, over a blocking unix socket: no runtime, so that the plugin starts at once.
use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt},
    time::TimeVal,
};

use crate::wire::{Answer, Failure, MAX_BODY, Sandbox, Verb};

/// Longest answer that is read: head and body.
const MAX_ANSWER: usize = 16 * 1024 + MAX_BODY;

/// The agent did not answer, or not in a form that says anything.
#[derive(Debug, thiserror::Error)]
#[error("the agent at {} does not answer: {source}", socket.display())]
pub struct Unanswered {
    socket: PathBuf,
    source: io::Error,
}

/// Asks, and waits for the answer at most `patience`.
pub fn ask(
    socket: &Path,
    verb: Verb,
    sandbox: &Sandbox,
    patience: Duration,
) -> Result<Result<Answer, Failure>, Unanswered> {
    exchange(socket, verb, sandbox, patience).map_err(|source| Unanswered {
        socket: socket.to_owned(),
        source,
    })
}

fn exchange(
    path: &Path,
    verb: Verb,
    sandbox: &Sandbox,
    patience: Duration,
) -> io::Result<Result<Answer, Failure>> {
    let deadline = Instant::now() + patience;
    let body = serde_json::to_vec(sandbox)?;
    let mut stream = open(path, deadline)?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: undermesh\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        verb.path(),
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat())?;
    parse(&read(&mut stream, deadline)?)
}

/// Connects; on a unix socket the time to send bounds this too, where the agent's queue is full.
fn open(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let socket: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let left = left(deadline)?;
    let time = TimeVal::new(
        left.as_secs().try_into().unwrap_or(i64::MAX),
        left.subsec_micros().into(),
    );
    setsockopt(&socket, sockopt::SendTimeout, &time)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

fn read(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(too_late()),
            Err(error) => return Err(error),
        }
        if answer.len() > MAX_ANSWER {
            return Err(invalid("its answer is too long"));
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(too_late());
    }
    // The kernel reads a time below its resolution as no limit at all.
    Ok(left.max(Duration::from_millis(1)))
}

/// Reads an HTTP/1.1 answer whose end is the end of the connection (RFC 9112).
fn parse(answer: &[u8]) -> io::Result<Result<Answer, Failure>> {
    let split = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = match split {
        Some(end) => (&answer[..end], &answer[end + 4..]),
        None => return Err(invalid("its answer broke off")),
    };
    let head = std::str::from_utf8(head).map_err(|_| invalid("its answer is not HTTP"))?;
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .ok_or_else(|| invalid("its answer is not HTTP"))?;
    if status == "200" {
        Ok(Ok(serde_json::from_slice(body)?))
    } else {
        Ok(Err(serde_json::from_slice(body)?))
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it took too long")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_and_failures_are_told_apart() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: a\r\n\r\n{\"outcome\":\"enrolled\"}";
        assert_eq!(parse(answer).unwrap(), Ok(Answer::Enrolled));
        let failure = b"HTTP/1.1 503 Service Unavailable\r\n\r\n{\"error\":\"so\"}";
        let error = "so".to_owned();
        assert_eq!(parse(failure).unwrap(), Err(Failure { error }));
    }

    #[test]
    fn an_answer_that_broke_off_is_none() {
        let whole = b"HTTP/1.1 200 OK\r\n\r\n{\"outcome\":\"enrolled\"}";
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
