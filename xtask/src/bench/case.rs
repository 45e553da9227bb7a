//! What is measured: the cases, the route that the traffic takes, and the figures that come out.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use undermesh_tests::{Place, Result};

use super::servers::{HTTP_PORT, IPERF_PORT};
use super::{connections, iperf3, wrk};

/// Bytes in the unit of CPU per volume, the gigabyte of 10^9.
const GIGABYTE: f64 = 1e9;

/// Bytes in the unit of throughput, the megabyte of 10^6.
const MEGABYTE: f64 = 1e6;

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
pub enum Case {
    /// HTTP on one keep-alive connection, a 1 KiB answer.
    #[value(name = "http-1")]
    #[serde(rename = "http-1")]
    Http1,
    /// HTTP on 64 keep-alive connections, a 1 KiB answer.
    #[value(name = "http-64")]
    #[serde(rename = "http-64")]
    Http64,
    /// Connections that each fetch 1 KiB and close.
    #[value(name = "connect")]
    #[serde(rename = "connect")]
    Connect,
    /// One bulk stream.
    #[value(name = "bulk-1")]
    #[serde(rename = "bulk-1")]
    Bulk1,
    /// Eight bulk streams.
    #[value(name = "bulk-8")]
    #[serde(rename = "bulk-8")]
    Bulk8,
    /// Memory of the proxies: idle, with 1,000 idle connections, and after the load.
    #[value(name = "memory")]
    #[serde(rename = "memory")]
    Memory,
}

impl Case {
    /// Every case, in the order of measurement.
    pub const ALL: [Self; 6] = [
        Self::Http1,
        Self::Http64,
        Self::Connect,
        Self::Bulk1,
        Self::Bulk8,
        Self::Memory,
    ];

    /// The load that the case puts on the proxies; `memory` has none of its own.
    pub fn load(self) -> Option<Load> {
        match self {
            Self::Http1 => Some(Load::Http { connections: 1 }),
            Self::Http64 => Some(Load::Http { connections: 64 }),
            Self::Connect => Some(Load::Connect),
            Self::Bulk1 => Some(Load::Bulk { streams: 1 }),
            Self::Bulk8 => Some(Load::Bulk { streams: 8 }),
            Self::Memory => None,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Http1 => "http-1",
            Self::Http64 => "http-64",
            Self::Connect => "connect",
            Self::Bulk1 => "bulk-1",
            Self::Bulk8 => "bulk-8",
            Self::Memory => "memory",
        })
    }
}

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Requests on connections that stay open.
    Http {
        /// How many connections.
        connections: u32,
    },
    /// Connections with one request each.
    Connect,
    /// Streams that carry as much as goes through.
    Bulk {
        /// How many streams.
        streams: u32,
    },
}

impl Load {
    /// Puts this load on `server` from the pod `client` for `seconds`.
    ///
    /// # Errors
    /// When the load generator fails or nothing gets through.
    pub fn put(self, client: &Place, server: IpAddr, seconds: u64) -> Result<Work> {
        let http = SocketAddr::new(server, HTTP_PORT);
        let bulk = SocketAddr::new(server, IPERF_PORT);
        match self {
            Self::Http { connections } => wrk::run(client, http, connections, seconds),
            Self::Connect => connections::churn(client, http, Duration::from_secs(seconds)),
            Self::Bulk { streams } => iperf3::run(client, bulk, streams, seconds),
        }
    }
}

/// What a load got done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Requests on connections that stay open.
    Requests {
        /// How many were answered.
        count: u64,
        /// How many of them a second.
        rate: f64,
        /// The time to an answer that half of them met.
        p50: Duration,
        /// The time to an answer that all but a hundredth of them met.
        p99: Duration,
        /// Requests that failed.
        failures: u64,
    },
    /// Connections with one request each.
    Connections {
        /// How many were opened, answered and closed.
        count: u64,
        /// How long that took.
        time: Duration,
        /// Connections that failed.
        failures: u64,
    },
    /// Streams that carry as much as goes through.
    Bulk {
        /// The bytes that arrived.
        bytes: u64,
        /// How long that took.
        time: Duration,
    },
}

impl Work {
    /// The requests or connections that failed.
    pub fn failures(&self) -> u64 {
        match self {
            Self::Requests { failures, .. } | Self::Connections { failures, .. } => *failures,
            Self::Bulk { .. } => 0,
        }
    }

    /// The figures of this work, for which a proxy spent the time `cpu`.
    pub fn figures(&self, cpu: Option<Duration>) -> Vec<(Figure, f64)> {
        let (mut figures, per_unit) = match *self {
            Self::Requests {
                count,
                rate,
                p50,
                p99,
                ..
            } => (
                vec![
                    (Figure::LatencyP50, micros(p50)),
                    (Figure::LatencyP99, micros(p99)),
                    (Figure::Requests, rate),
                ],
                cpu.map(|cpu| (Figure::CpuPerRequest, micros(cpu) / float(count))),
            ),
            Self::Connections { count, time, .. } => (
                vec![(Figure::Connections, float(count) / time.as_secs_f64())],
                cpu.map(|cpu| (Figure::CpuPerConnection, micros(cpu) / float(count))),
            ),
            Self::Bulk { bytes, time } => (
                vec![(
                    Figure::Throughput,
                    float(bytes) / MEGABYTE / time.as_secs_f64(),
                )],
                cpu.map(|cpu| {
                    let gigabytes = float(bytes) / GIGABYTE;
                    (Figure::CpuPerGigabyte, cpu.as_secs_f64() / gigabytes)
                }),
            ),
        };
        figures.extend(per_unit);
        figures
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Counts stay far below 2^53, where this would round.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}

/// Where the server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// On another node than the client.
    Across,
    /// On the client's own node.
    One,
}

impl Route {
    /// Both routes.
    pub const BOTH: [Self; 2] = [Self::Across, Self::One];
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Across => "across",
            Self::One => "one",
        })
    }
}

/// What a number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Median latency of a request, in microseconds.
    LatencyP50,
    /// 99th percentile of the latency, in microseconds.
    LatencyP99,
    /// Requests a second.
    Requests,
    /// Proxy CPU a request, in microseconds.
    CpuPerRequest,
    /// New connections a second.
    Connections,
    /// Proxy CPU a connection, in microseconds.
    CpuPerConnection,
    /// Megabytes (10^6 bytes) a second.
    Throughput,
    /// Proxy CPU a gigabyte (10^9 bytes), in seconds.
    CpuPerGigabyte,
    /// Resident memory of a node's proxy before any traffic, in MiB.
    RssIdle,
    /// The same, with pages shared between processes divided among them.
    PssIdle,
    /// Resident memory of a node's proxy with 1,000 idle connections, in MiB.
    RssConnected,
    /// The same, with pages shared between processes divided among them.
    PssConnected,
    /// Resident memory of a node's proxy after all load, in MiB.
    RssLoaded,
    /// The same, with pages shared between processes divided among them.
    PssLoaded,
}

impl Figure {
    /// Resident and proportional memory before any traffic.
    pub const IDLE: [Self; 2] = [Self::RssIdle, Self::PssIdle];
    /// Resident and proportional memory with connections open.
    pub const CONNECTED: [Self; 2] = [Self::RssConnected, Self::PssConnected];
    /// Resident and proportional memory after the load.
    pub const LOADED: [Self; 2] = [Self::RssLoaded, Self::PssLoaded];
}

impl fmt::Display for Figure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::LatencyP50 => "p50 latency, us",
            Self::LatencyP99 => "p99 latency, us",
            Self::Requests => "requests/s",
            Self::CpuPerRequest => "proxy CPU, us/request",
            Self::Connections => "connections/s",
            Self::CpuPerConnection => "proxy CPU, us/connection",
            Self::Throughput => "throughput, MB/s",
            Self::CpuPerGigabyte => "proxy CPU, s/GB",
            Self::RssIdle => "RSS idle, MiB/node",
            Self::PssIdle => "PSS idle, MiB/node",
            Self::RssConnected => "RSS with 1,000 connections, MiB/node",
            Self::PssConnected => "PSS with 1,000 connections, MiB/node",
            Self::RssLoaded => "RSS after the load, MiB/node",
            Self::PssLoaded => "PSS after the load, MiB/node",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_divided_by_the_requests_answered() {
        let work = Work::Requests {
            count: 40_000,
            rate: 20_000.0,
            p50: Duration::from_micros(50),
            p99: Duration::from_micros(90),
            failures: 0,
        };
        let figures = work.figures(Some(Duration::from_secs(2)));
        assert_eq!(figures[0], (Figure::LatencyP50, 50.0));
        assert_eq!(figures.last(), Some(&(Figure::CpuPerRequest, 50.0)));
    }

    #[test]
    fn cpu_of_bulk_is_in_seconds_a_gigabyte() {
        let work = Work::Bulk {
            bytes: 4_000_000_000,
            time: Duration::from_secs(2),
        };
        assert_eq!(
            work.figures(Some(Duration::from_secs(6))),
            [(Figure::Throughput, 2_000.0), (Figure::CpuPerGigabyte, 1.5)]
        );
    }

    #[test]
    fn without_a_proxy_there_is_no_cpu_figure() {
        let work = Work::Connections {
            count: 100,
            time: Duration::from_secs(2),
            failures: 0,
        };
        assert_eq!(work.figures(None), [(Figure::Connections, 50.0)]);
    }
}
