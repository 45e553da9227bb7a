//! Much data in one connection arrives whole.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use undermesh_tests::apps::{self, IPERF_PORT, NGINX_PORT};
use undermesh_tests::{Family, Result, Shop, Testbed, tcp};

use crate::Scenario;

/// One GiB, and some bytes that fill no buffer.
const SIZE: u64 = (1 << 30) + 12_345;

/// The pattern repeats after this many bytes, a prime: a block that is lost, doubled or moved by any
/// power of two shows.
const PATTERN: usize = 1_048_573;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("iperf3_runs_both_ways", iperf3_runs)
        .needs(&["iperf3"])
        .heavy(),
    Scenario::new(
        "a_gibibyte_arrives_with_the_right_checksum",
        gibibyte_arrives,
    )
    .heavy(),
];

fn iperf3_runs(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _servers = [apps::iperf3(&shop.far)?, apps::iperf3(&shop.near)?];
    for (server, family, direction) in [
        (&shop.far, Family::V4, &[][..]),
        (&shop.far, Family::V6, &["--reverse"][..]),
        (&shop.far, Family::V4, &["--parallel", "8"][..]),
        (&shop.near, Family::V4, &[][..]),
    ] {
        let report =
            apps::iperf3_client(&shop.client, server.ip(family), IPERF_PORT, 2, direction)?;
        let report = report.success()?;
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let sent = report["end"]["sum_sent"]["bytes"].as_u64().unwrap();
        let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(
            received > 10_000_000,
            "{received} bytes in two seconds, {direction:?}"
        );
        assert!(
            received <= sent,
            "{received} of {sent} bytes, {direction:?}"
        );
    }
    Ok(())
}

fn gibibyte_arrives(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _server = tcp::Server::start(&shop.far, NGINX_PORT, receive)?;
    for (family, target) in [
        (Family::V4, shop.far_service(Family::V4)),
        (
            Family::V6,
            SocketAddr::new(shop.far.ip(Family::V6), NGINX_PORT),
        ),
    ] {
        let (sent, received) = shop.client.run(|| send(target))?.unwrap();
        assert_eq!(sent.length, SIZE);
        assert_eq!(sent, received, "{family}");
    }
    Ok(())
}

/// The length of a stream and its checksum (FNV-1a, 64 bits, over little-endian words of 8 bytes).
#[derive(Debug, PartialEq, Eq)]
struct Sum {
    length: u64,
    checksum: u64,
}

impl Sum {
    fn new() -> Self {
        Self {
            length: 0,
            checksum: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// Adds a block; all but the last have the size of the pattern.
    fn add(&mut self, block: &[u8]) {
        self.length += block.len() as u64;
        for word in block.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            self.checksum =
                (self.checksum ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Reads to the end and tells the client what came.
fn receive(mut stream: TcpStream) -> io::Result<()> {
    let mut sum = Sum::new();
    let mut source = BufReader::new(stream.try_clone()?);
    let mut block = Vec::with_capacity(PATTERN);
    while (&mut source).take(PATTERN as u64).read_to_end(&mut block)? > 0 {
        sum.add(&block);
        block.clear();
    }
    stream.write_all(&sum.length.to_be_bytes())?;
    stream.write_all(&sum.checksum.to_be_bytes())?;
    stream.shutdown(Shutdown::Write)
}

/// Sends [`SIZE`] bytes; returns what was sent and what the server says it received.
fn send(target: SocketAddr) -> io::Result<(Sum, Sum)> {
    let mut pattern = pattern();
    let mut stream = tcp::connect(target)?;
    let mut sum = Sum::new();
    while sum.length < SIZE {
        pattern[..8].copy_from_slice(&sum.length.to_be_bytes());
        let left = usize::try_from(SIZE - sum.length).unwrap_or(PATTERN);
        let block = &pattern[..PATTERN.min(left)];
        stream.write_all(block)?;
        sum.add(block);
    }
    stream.shutdown(Shutdown::Write)?;
    let (mut length, mut checksum) = ([0; 8], [0; 8]);
    stream.read_exact(&mut length)?;
    stream.read_exact(&mut checksum)?;
    let received = Sum {
        length: u64::from_be_bytes(length),
        checksum: u64::from_be_bytes(checksum),
    };
    Ok((sum, received))
}

/// Bytes without a period shorter than the block (xorshift, Marsaglia 2003).
fn pattern() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(PATTERN)
    .collect()
}
