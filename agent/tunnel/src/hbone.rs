//! The CONNECT request and its answers, as Istio ambient writes them on the wire.
//!
//! Plain HTTP/2 CONNECT (RFC 9113, section 8.5): the authority is the destination, and headers describe
//! the source. None of them is proof of anything: identity comes from the certificate alone.
use std::{fmt, net::SocketAddr, str::FromStr as _};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, uri};
use rand::{Rng, RngExt as _};

/// Header that describes a workload.
pub(crate) const BAGGAGE: &str = "baggage";
/// Header with the client's address and the service it asked for (RFC 7239).
pub(crate) const FORWARDED: &str = "forwarded";
/// Network of the source, where the connection came from another one.
pub(crate) const FORWARDED_NETWORK: &str = "x-forwarded-network";
/// W3C trace context.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// Longest `baggage` or `forwarded` value that is looked at, in bytes.
const MAX_VALUE_BYTES: usize = 4 * 1024;
/// Longest host name in an authority (RFC 1035, section 2.3.4).
const MAX_HOST_BYTES: usize = 255;

/// What an outbound connection tells its peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connect<'a> {
    /// Address and port of the application behind the peer, or what the client asked a waypoint for.
    pub authority: SocketAddr,
    /// The client application's own address.
    pub client: SocketAddr,
    /// Host name of the service that the client asked for.
    pub service: Option<&'a str>,
    /// The source workload, as a baggage value.
    pub baggage: &'a str,
}

impl Connect<'_> {
    /// The request that opens the tunnel.
    ///
    /// # Errors
    /// When a value cannot be written as a header.
    pub(crate) fn request(&self, random: &mut impl Rng) -> Result<Request<()>, http::Error> {
        let forwarded = match self.service {
            Some(host) => format!("for=\"{}\";host={host}", self.client),
            None => format!("for=\"{}\"", self.client),
        };
        Request::builder()
            .method(Method::CONNECT)
            .uri(self.authority.to_string())
            .header(BAGGAGE, self.baggage)
            .header(FORWARDED, forwarded)
            .header(TRACEPARENT, trace_parent(random))
            .body(())
    }
}

/// A fresh, unsampled trace context.
fn trace_parent(random: &mut impl Rng) -> String {
    format!(
        "00-{:032x}-{:016x}-00",
        random.random::<u128>(),
        random.random::<u64>()
    )
}

/// What a CONNECT asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    /// An address and a port.
    Address(SocketAddr),
    /// A service's name, as peers of other networks write it, and its port.
    Host { host: String, port: u16 },
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Why a request is not a tunnel that this node can open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    /// Not a CONNECT.
    #[error("method {0} is not CONNECT; only tunnels are served here")]
    Method(Method),
    /// No authority, or one without a port.
    #[error("the CONNECT names no destination; write <address>:<port>")]
    NoAuthority,
}

/// Reads what a CONNECT asks for.
///
/// # Errors
/// When the request is no CONNECT, or its authority is not a host with a port.
pub(crate) fn authority<B>(request: &Request<B>) -> Result<Authority, BadRequest> {
    if request.method() != Method::CONNECT {
        return Err(BadRequest::Method(request.method().clone()));
    }
    let authority = request.uri().authority().ok_or(BadRequest::NoAuthority)?;
    parse_authority(authority)
}

fn parse_authority(authority: &uri::Authority) -> Result<Authority, BadRequest> {
    if let Ok(address) = SocketAddr::from_str(authority.as_str()) {
        return Ok(Authority::Address(crate::socket::canonical(address)));
    }
    let (host, port) = (authority.host(), authority.port_u16());
    let is_name = !host.is_empty()
        && host.len() <= MAX_HOST_BYTES
        && !authority.as_str().contains(['@', '['])
        // What looks like an address and is none is no name either.
        && host.contains(|letter: char| !letter.is_ascii_digit() && letter != '.');
    match port {
        Some(port) if is_name => Ok(Authority::Host {
            host: host.to_ascii_lowercase(),
            port,
        }),
        _ => Err(BadRequest::NoAuthority),
    }
}

/// The value of a header, where it is text and of a bounded length.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name)?;
    (value.len() <= MAX_VALUE_BYTES)
        .then(|| value.to_str().ok())
        .flatten()
}

/// The service's host name in a `forwarded` value, if it holds one.
pub(crate) fn forwarded_host(value: &str) -> Option<&str> {
    value
        .split([';', ','])
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| key.eq_ignore_ascii_case("host"))
        .map(|(_, host)| host.trim_matches('"'))
        .filter(|host| !host.is_empty())
}

/// The answer to a request that opened a tunnel; describes the destination.
pub(crate) fn accepted(baggage: &str) -> Response<()> {
    let mut response = Response::new(());
    if let Ok(value) = HeaderValue::from_str(baggage) {
        response.headers_mut().insert(BAGGAGE, value);
    }
    response
}

/// The answer to a request that did not.
pub(crate) fn refused(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn connect(uri: &str) -> Request<()> {
        Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .body(())
            .unwrap()
    }

    #[test]
    fn a_connect_carries_what_istio_expects() {
        let request = Connect {
            authority: "[fd00::2]:80".parse().unwrap(),
            client: "10.1.0.5:40000".parse().unwrap(),
            service: Some("web.shop.svc.cluster.local"),
            baggage: "k8s.namespace.name=shop",
        }
        .request(&mut StdRng::seed_from_u64(1))
        .unwrap();
        assert_eq!(request.uri().to_string(), "[fd00::2]:80");
        assert_eq!(
            authority(&request).unwrap(),
            Authority::Address("[fd00::2]:80".parse().unwrap())
        );
        assert_eq!(
            text(request.headers(), FORWARDED),
            Some("for=\"10.1.0.5:40000\";host=web.shop.svc.cluster.local")
        );
        let trace = text(request.headers(), TRACEPARENT).unwrap();
        assert_eq!(trace.len(), 55);
        assert!(trace.starts_with("00-") && trace.ends_with("-00"));
    }

    #[test]
    fn a_destination_is_an_address_or_a_name_with_a_port() {
        assert_eq!(
            authority(&connect("Web.shop:80")).unwrap(),
            Authority::Host {
                host: "web.shop".to_owned(),
                port: 80
            }
        );
        assert_eq!(
            authority(&connect("[::ffff:10.0.0.1]:80")).unwrap(),
            Authority::Address("10.0.0.1:80".parse().unwrap())
        );
        let long = format!("{}:80", "a".repeat(MAX_HOST_BYTES + 1));
        for bad in ["10.0.0.1", "web.shop", "10.0.0:80", "me@web.shop:80", &long] {
            assert_eq!(
                authority(&connect(bad)),
                Err(BadRequest::NoAuthority),
                "{bad}"
            );
        }
        let get = Request::builder()
            .uri("http://10.0.0.1:80/")
            .body(())
            .unwrap();
        assert!(matches!(authority(&get), Err(BadRequest::Method(_))));
    }

    #[test]
    fn the_service_is_found_in_forwarded() {
        assert_eq!(forwarded_host("for=\"1.2.3.4:5\";host=a.b"), Some("a.b"));
        assert_eq!(forwarded_host("for=\"1.2.3.4:5\""), None);
        assert_eq!(forwarded_host("host=\"\""), None);
    }

    proptest! {
        #[test]
        fn any_forwarded_value_is_survived(value in ".*") {
            let _ = forwarded_host(&value);
        }

        #[test]
        fn any_authority_is_survived(value in "[ -~]{0,80}") {
            if let Ok(authority) = value.parse::<uri::Authority>() {
                let _ = parse_authority(&authority);
            }
        }
    }
}
