//! Connections made by the bench itself, from threads that stand in the client's pod.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use undermesh_tests::{Context, Error, Place, Result};

use super::case::Work;
use super::servers::PAGE_SIZE;

/// Threads that open connections, each one after another.
const OPENERS: usize = 16;

/// How long one connection may take for any of its steps.
const PATIENCE: Duration = Duration::from_secs(5);

/// Failures after which a thread gives up: the server is gone.
const MAX_FAILURES: u64 = 100;

/// Bytes of headers that an answer may have.
const MAX_HEAD: usize = 1024;

/// What becomes of the connection after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Close,
    KeepAlive,
}

/// Opens connections for `time`, each for one request, and counts those that were answered in full and
/// closed by the server.
///
/// # Errors
/// When none was answered.
pub fn churn(client: &Place, server: SocketAddr, time: Duration) -> Result<Work> {
    let start = Instant::now();
    let tallies = client.run(|| {
        thread::scope(|scope| {
            let openers = [(); OPENERS].map(|()| scope.spawn(|| open_until(server, start + time)));
            openers.map(|opener| opener.join().unwrap_or_default())
        })
    })?;
    let time = start.elapsed();
    let mut total = Tally::default();
    for tally in tallies {
        total.count += tally.count;
        total.failures += tally.failures;
        total.reason = total.reason.or(tally.reason);
    }
    if total.count == 0 {
        return Err(Error::step(
            format!("open connections to {server} from {}", client.label()),
            total.reason.unwrap_or_else(|| "none was answered".into()),
        ));
    }
    Ok(Work::Connections {
        count: total.count,
        time,
        failures: total.failures,
    })
}

/// What one thread saw.
#[derive(Debug, Default)]
struct Tally {
    count: u64,
    failures: u64,
    reason: Option<String>,
}

fn open_until(server: SocketAddr, deadline: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < deadline && tally.failures < MAX_FAILURES {
        match fetch(server, After::Close) {
            Ok(_) => tally.count += 1,
            Err(error) => {
                tally.failures += 1;
                tally.reason.get_or_insert_with(|| error.to_string());
            }
        }
    }
    tally
}

/// Opens `count` connections one by one, each with one answered request, and keeps them open.
///
/// # Errors
/// The first one that fails.
pub fn hold(client: &Place, server: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    client
        .run(|| {
            (0..count)
                .map(|_| fetch(server, After::KeepAlive))
                .collect::<io::Result<_>>()
        })?
        .context(|| {
            format!(
                "hold {count} connections to {server} from {}",
                client.label()
            )
        })
}

/// Fetches the page once.
///
/// # Errors
/// When the connection fails or the answer is not the page.
pub fn probe(client: &Place, server: SocketAddr) -> Result<()> {
    client
        .run(|| fetch(server, After::Close))?
        .context(|| format!("fetch the page of {server} from {}", client.label()))
        .map(drop)
}

/// Opens a connection and fetches the page.
fn fetch(server: SocketAddr, after: After) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(match after {
        After::Close => b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n",
        After::KeepAlive => b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n",
    })?;
    read_page(&mut stream, after)?;
    Ok(stream)
}

/// Reads an answer with the page, and the end of the connection when it is to close.
fn read_page(stream: &mut impl Read, after: After) -> io::Result<()> {
    let mut answer = [0; MAX_HEAD + PAGE_SIZE];
    let mut length = 0;
    loop {
        let read = stream.read(&mut answer[length..])?;
        length += read;
        let complete = is_page(&answer[..length]);
        match (after, read) {
            (After::KeepAlive, _) | (After::Close, 0) if complete => return Ok(()),
            (_, 0) => {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    format!("the answer is not the page but {length} bytes of something else"),
                ));
            }
            _ => {}
        }
    }
}

fn is_page(answer: &[u8]) -> bool {
    let separator = b"\r\n\r\n";
    answer.starts_with(b"HTTP/1.1 200 ")
        && answer
            .windows(separator.len())
            .position(|window| window == separator)
            .is_some_and(|head| answer.len() == head + separator.len() + PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that gives its pieces one by one.
    struct Pieces(Vec<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    fn page() -> Vec<u8> {
        let mut answer = b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\n".to_vec();
        answer.extend([b'x'; PAGE_SIZE]);
        answer
    }

    #[test]
    fn a_page_in_pieces_is_a_page() {
        let page = page();
        let (head, rest) = page.split_at(20);
        for after in [After::Close, After::KeepAlive] {
            let mut pieces = Pieces(vec![head.to_vec(), rest.to_vec()]);
            assert!(read_page(&mut pieces, after).is_ok());
        }
    }

    #[test]
    fn an_answer_cut_short_is_a_failure() {
        let mut short = page();
        short.pop();
        for after in [After::Close, After::KeepAlive] {
            assert!(read_page(&mut Pieces(vec![short.clone()]), after).is_err());
        }
    }

    #[test]
    fn another_status_or_too_long_an_answer_is_a_failure() {
        let refused = b"HTTP/1.1 503 Service Unavailable\r\n\r\n".to_vec();
        assert!(read_page(&mut Pieces(vec![refused]), After::Close).is_err());
        let endless = vec![b'x'; MAX_HEAD + PAGE_SIZE];
        assert!(read_page(&mut Pieces(vec![endless]), After::KeepAlive).is_err());
    }
}
