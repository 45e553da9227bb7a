//! The load generator wrk: its command line and what it prints.

use std::net::SocketAddr;
use std::time::Duration;

use undermesh_tests::{Context, Error, Place, Result};

use super::case::Work;

/// How long wrk may run beyond the time it was given.
const GRACE: Duration = Duration::from_secs(30);

/// Threads of wrk; more would take the cores from what is measured.
const MAX_THREADS: u32 = 2;

/// Requests the page of `server` on `connections` for `seconds`.
///
/// # Errors
/// When wrk fails or no request is answered.
pub fn run(client: &Place, server: SocketAddr, connections: u32, seconds: u64) -> Result<Work> {
    let threads = connections.min(MAX_THREADS).to_string();
    let connections = connections.to_string();
    let (time, url) = (format!("{seconds}s"), format!("http://{server}/"));
    let arguments = [
        "-t",
        &threads,
        "-c",
        &connections,
        "-d",
        &time,
        "--latency",
        &url,
    ];
    let timeout = Duration::from_secs(seconds) + GRACE;
    let text = client.output_within(timeout, "wrk", arguments)?.success()?;
    match parse(&text).context(|| format!("read the output of wrk: {text}"))? {
        Work::Requests { count: 0, .. } => Err(Error::step(
            format!("request {url} by wrk in {}", client.label()),
            "no request was answered",
        )),
        work => Ok(work),
    }
}

fn parse(text: &str) -> Option<Work> {
    let mut failures = 0;
    let (mut count, mut rate, mut p50, mut p99) = (None, None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some((requests, _)) = line.split_once(" requests in ") {
            count = Some(requests.parse().ok()?);
        } else if let Some(value) = line.strip_prefix("Requests/sec:") {
            rate = Some(value.trim().parse().ok()?);
        } else if let Some(value) = line.strip_prefix("50%") {
            p50 = Some(parse_time(value)?);
        } else if let Some(value) = line.strip_prefix("99%") {
            p99 = Some(parse_time(value)?);
        } else if let Some(value) = line.strip_prefix("Non-2xx or 3xx responses:") {
            failures += value.trim().parse::<u64>().ok()?;
        } else if let Some(errors) = line.strip_prefix("Socket errors:") {
            failures += parse_socket_errors(errors)?;
        }
    }
    Some(Work::Requests {
        count: count?,
        rate: rate?,
        p50: p50?,
        p99: p99?,
        failures,
    })
}

/// The sum of `connect 0, read 3, write 0, timeout 1`.
fn parse_socket_errors(errors: &str) -> Option<u64> {
    errors
        .split(',')
        .map(|error| error.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Reads a time such as `143.00us`, `1.33ms` or `1.10s`.
fn parse_time(text: &str) -> Option<Duration> {
    let text = text.trim();
    let unit = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by wrk 4.1.0.
    const GOOD: &str = "Running 1s test @ http://127.0.0.1:18080/
  1 threads and 1 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   190.19us  568.67us  10.27ms   98.73%
    Req/Sec     7.05k     1.52k   11.35k    90.91%
  Latency Distribution
     50%  143.00us
     75%  158.00us
     90%  171.00us
     99%    1.33ms
  7710 requests in 1.10s, 1.12MB read
Requests/sec:   7008.89
Transfer/sec:      1.02MB
";

    /// Printed by wrk 4.1.0 when every answer was a 404.
    const REFUSED: &str = "Running 1s test @ http://127.0.0.1:18080/no
  2 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.85ms    0.87ms   8.39ms   90.83%
    Req/Sec    40.42k    16.27k  100.80k    90.48%
  Latency Distribution
     50%  630.00us
     75%    1.17ms
     90%    1.64ms
     99%    4.34ms
  84504 requests in 1.10s, 12.49MB read
  Non-2xx or 3xx responses: 84504
Requests/sec:  76597.18
Transfer/sec:     11.32MB
";

    /// Printed by wrk 4.1.0 against a server that closed every connection.
    const BROKEN: &str = "Running 1s test @ http://127.0.0.1:18081/
  1 threads and 2 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    51.01ms    0.88ms  52.87ms   80.00%
    Req/Sec     9.80      0.42    10.00     80.00%
  Latency Distribution
     50%   50.68ms
     75%   51.58ms
     90%   52.87ms
     99%   52.87ms
  10 requests in 1.00s, 400.00B read
  Socket errors: connect 0, read 18, write 0, timeout 0
Requests/sec:      9.96
Transfer/sec:     398.60B
";

    #[test]
    fn the_output_of_wrk_becomes_work() {
        assert_eq!(
            parse(GOOD),
            Some(Work::Requests {
                count: 7_710,
                rate: 7_008.89,
                p50: Duration::from_micros(143),
                p99: Duration::from_micros(1_330),
                failures: 0,
            })
        );
    }

    #[test]
    fn answers_that_are_no_success_are_failures() {
        assert_eq!(parse(REFUSED).map(|work| work.failures()), Some(84_504));
    }

    #[test]
    fn socket_errors_are_failures() {
        assert_eq!(parse(BROKEN).map(|work| work.failures()), Some(18));
    }

    #[test]
    fn output_without_a_result_is_no_work() {
        assert_eq!(
            parse("unable to connect to 127.0.0.1:18080 Connection refused"),
            None
        );
        assert_eq!(parse(&GOOD.replace("143.00us", "soon")), None);
    }
}
