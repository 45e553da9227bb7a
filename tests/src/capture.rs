//! Records packets with tcpdump.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;

use crate::pcap::{self, Segment};
use crate::process::Running;
use crate::{Context, Error, Place, Result};

/// How long tcpdump may take to start, to see the end mark, and to stop.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Pause between two looks at the file, whose growth is no event.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Port of the packet that marks the end (the discard service, RFC 863).
const DISCARD_PORT: u16 = 9;

/// A recording that is under way.
#[derive(Debug)]
pub struct Capture {
    place: Arc<Place>,
    interface: String,
    file: PathBuf,
    tcpdump: Running,
}

impl Capture {
    /// Starts to record all packets of `interface` in `place`.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(place: &Arc<Place>, interface: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = place.folder().join(format!("{number}.pcap"));
        let written = file.to_string_lossy();
        // The buffer (KiB) holds a burst; -U and immediate mode write each packet as it comes.
        let tcpdump = place.spawn(
            "tcpdump",
            [
                "-i",
                interface,
                "-n",
                "-s",
                "0",
                "-U",
                "--immediate-mode",
                "-B",
                "65536",
                "-Z",
                "root",
                "-w",
                &written,
            ],
        )?;
        tcpdump
            .lines()
            .wait_for(0, TIMEOUT, |line| {
                line.contains("listening on").then_some(())
            })
            .context(|| format!("wait until tcpdump listens: {:?}", tcpdump.lines().since(0)))?;
        Ok(Self {
            place: Arc::clone(place),
            interface: interface.to_owned(),
            file,
            tcpdump,
        })
    }

    /// Ends the recording, with every packet in it that was sent before this call.
    ///
    /// # Errors
    /// When tcpdump lost packets or did not end.
    pub fn finish(mut self) -> Result<Recording> {
        let mark = format!("end of recording {}", self.file.display());
        self.place.run(|| send_mark(&self.interface, &mark))??;
        let deadline = Instant::now() + TIMEOUT;
        while !contains(&self.bytes()?, mark.as_bytes()) {
            if Instant::now() > deadline {
                return Err(Error::step("finish a recording", "its end mark never came"));
            }
            thread::sleep(LOOK_INTERVAL);
        }
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(TIMEOUT)?;
        self.require_complete()?;
        let bytes = self.bytes()?;
        Ok(Recording {
            segments: pcap::segments(&bytes)?,
            bytes,
        })
    }

    fn require_complete(&self) -> Result<()> {
        self.tcpdump
            .lines()
            .wait_for(0, TIMEOUT, |line| {
                line.ends_with("dropped by kernel")
                    .then(|| line.starts_with("0 "))
            })
            .filter(|complete| *complete)
            .map(drop)
            .context(|| format!("require every packet: {:?}", self.tcpdump.lines().since(0)))
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        fs::read(&self.file).context(|| format!("read {}", self.file.display()))
    }
}

/// The packets of a recording.
#[derive(Debug)]
pub struct Recording {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
}

impl Recording {
    /// Whether any packet carries `token`.
    pub fn contains(&self, token: &str) -> bool {
        contains(&self.bytes, token.as_bytes())
    }

    /// The TCP payload bytes that went to or came from `port`.
    pub fn payload_of_port(&self, port: u16) -> usize {
        self.segments
            .iter()
            .filter(|segment| segment.source.port() == port || segment.destination.port() == port)
            .map(|segment| segment.payload.len())
            .sum()
    }

    /// The TCP segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// Sends a packet that says `mark` out of `interface`, to all nodes on the link (RFC 4291, 2.7.1).
fn send_mark(interface: &str, mark: &str) -> Result<()> {
    let index = if_nametoindex(interface).context(|| format!("find interface {interface}"))?;
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let target = SocketAddrV6::new(all_nodes, DISCARD_PORT, 0, index);
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.send_to(mark.as_bytes(), target))
        .map(drop)
        .context(|| "send the end mark")
}

fn contains(bytes: &[u8], token: &[u8]) -> bool {
    bytes.windows(token.len()).any(|window| window == token)
}
