//! The bulk load of iperf3: its command line and its answer in JSON.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use undermesh_tests::{Context, Error, Place, Result};

use super::case::Work;

/// How long iperf3 may run beyond the time it was given.
const GRACE: Duration = Duration::from_secs(30);

/// Sends on `streams` to `server` for `seconds`.
///
/// # Errors
/// When iperf3 fails or nothing arrives.
pub fn run(client: &Place, server: SocketAddr, streams: u32, seconds: u64) -> Result<Work> {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let (streams, time) = (streams.to_string(), seconds.to_string());
    let arguments = [
        "--client",
        &ip,
        "--port",
        &port,
        "--parallel",
        &streams,
        "--time",
        &time,
        "--json",
    ];
    let timeout = Duration::from_secs(seconds) + GRACE;
    let output = client.output_within(timeout, "iperf3", arguments)?;
    parse(&output.stdout).map_err(|cause| Error::step(&output.label, cause))
}

/// The part of the answer that is read; a failure leaves `end` empty and says `error`.
#[derive(Deserialize)]
struct Answer {
    error: Option<String>,
    end: End,
}

#[derive(Deserialize)]
struct End {
    sum_received: Option<Received>,
}

#[derive(Deserialize)]
struct Received {
    bytes: u64,
    seconds: f64,
}

fn parse(json: &[u8]) -> Result<Work> {
    let step = "read the answer of iperf3";
    let answer: Answer = serde_json::from_slice(json).context(|| step)?;
    if let Some(error) = answer.error {
        return Err(Error::step("run a transfer", error));
    }
    let Received { bytes, seconds } = answer.end.sum_received.context(|| step)?;
    let time = Duration::try_from_secs_f64(seconds).context(|| step)?;
    if bytes == 0 || time.is_zero() {
        return Err(Error::step("run a transfer", "nothing arrived"));
    }
    Ok(Work::Bulk { bytes, time })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by iperf3 3.12 for two streams, without the intervals.
    const GOOD: &str = r#"{
	"start":	{
		"version":	"iperf 3.12"
	},
	"intervals":	[],
	"end":	{
		"sum_sent":	{
			"start":	0,
			"end":	1.000185,
			"seconds":	1.000185,
			"bytes":	2319974400,
			"bits_per_second":	18556362272.9795,
			"retransmits":	2,
			"sender":	true
		},
		"sum_received":	{
			"start":	0,
			"end":	1.000239,
			"seconds":	1.000239,
			"bytes":	2319974400,
			"bits_per_second":	18555360468.847942,
			"sender":	true
		},
		"sender_tcp_congestion":	"bbr",
		"receiver_tcp_congestion":	"bbr"
	}
}"#;

    /// Printed by iperf3 3.12 when nobody listens.
    const REFUSED: &str = r#"{
	"start":	{
		"connected":	[],
		"version":	"iperf 3.12",
		"system_info":	"Linux vm 6.18.44-fc-v595 #1 SMP PREEMPT_DYNAMIC @0 x86_64"
	},
	"intervals":	[],
	"end":	{
	},
	"error":	"unable to connect to server: Connection refused"
}"#;

    #[test]
    fn what_arrived_counts() {
        let work = parse(GOOD.as_bytes()).unwrap();
        assert_eq!(
            work,
            Work::Bulk {
                bytes: 2_319_974_400,
                time: Duration::from_micros(1_000_239),
            }
        );
    }

    #[test]
    fn a_failed_transfer_says_why() {
        let error = parse(REFUSED.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("Connection refused"), "{error}");
    }

    #[test]
    fn a_transfer_of_nothing_is_a_failure() {
        assert!(parse(GOOD.replace("2319974400", "0").as_bytes()).is_err());
        assert!(parse(b"iperf3: error").is_err());
    }
}
