//! The smallest HTTP client: one `GET` over any stream, for the agent's own endpoints.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::{Context, Result};

/// The most bytes of an answer that are read.
const MAX_ANSWER: u64 = 16 << 20;
/// How long a program may be silent before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Asks a program of this network by its port on loopback.
///
/// # Errors
/// When nobody listens there, or no answer comes.
pub fn get_local(port: u16, path: &str) -> Result<Answer> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .context(|| format!("connect to port {port}"))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context(|| format!("bound the wait for GET {path}"))?;
    get(stream, path)
}

/// Sends `GET path` as HTTP/1.0, so that the body ends with the connection.
///
/// # Errors
/// When the stream breaks or the answer is not HTTP.
pub fn get(mut stream: impl Read + Write, path: &str) -> Result<Answer> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .context(|| format!("send GET {path}"))?;
    let mut answer = String::new();
    stream
        .take(MAX_ANSWER)
        .read_to_string(&mut answer)
        .context(|| format!("read the answer to GET {path}"))?;
    parse(&answer).context(|| format!("read the answer to GET {path}: {answer:?}"))
}

/// The sum of the samples of `metric` in `metrics`, the text that Prometheus scrapes, that carry all `labels`, each
/// such as `reporter="source"`.
pub fn sum_of_samples(metrics: &str, metric: &str, labels: &[&str]) -> f64 {
    metrics
        .lines()
        .filter(|line| {
            line.strip_prefix(metric)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = parse("HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\nnot yet\r\n");
        assert_eq!(
            answer,
            Some(Answer {
                status: 503,
                body: "not yet\r\n".to_owned()
            })
        );
    }

    #[test]
    fn what_is_not_http_is_no_answer() {
        assert_eq!(parse("hello"), None);
        assert_eq!(parse("HTTP/1.0 many\r\n\r\n"), None);
    }
}
