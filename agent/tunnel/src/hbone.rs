//! The CONNECT request and its answers, as Istio ambient writes them on the wire.
//!
//! Plain HTTP/2 CONNECT (RFC 9113, section 8.5): the authority is the destination, and headers describe
//! the source. None of them is proof of anything: identity comes from the certificate alone.
use std::{net::SocketAddr, str::FromStr as _};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, uri::Authority};
use rand::{Rng, RngExt as _};

/// Header that describes a workload.
pub(crate) const BAGGAGE: &str = "baggage";
/// Header with the client's address and the service it asked for (RFC 7239).
pub(crate) const FORWARDED: &str = "forwarded";
/// W3C trace context.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// Longest `baggage` or `forwarded` value that is looked at, in bytes.
const MAX_VALUE_BYTES: usize = 4 * 1024;

/// What an outbound connection tells its peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connect<'a> {
    /// Address and port of the application behind the peer.
    pub destination: SocketAddr,
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
            .uri(self.destination.to_string())
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

/// Why a request is not a tunnel that this node can open; says which status answers it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    /// Not a CONNECT.
    #[error("method {0} is not CONNECT; only tunnels are served here")]
    Method(Method),
    /// No authority, or one without a port.
    #[error("the CONNECT names no destination; write <address>:<port>")]
    NoAuthority,
    /// The authority is a host name, which stands for another network.
    #[error("the CONNECT names the host {0}; only addresses of this pod are served")]
    HostName(String),
}

impl BadRequest {
    /// The status that answers the request.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Method(_) | Self::NoAuthority => StatusCode::BAD_REQUEST,
            Self::HostName(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Reads the destination of a CONNECT.
///
/// # Errors
/// When the request is no CONNECT, or its authority is no address with a port.
pub(crate) fn destination<B>(request: &Request<B>) -> Result<SocketAddr, BadRequest> {
    if request.method() != Method::CONNECT {
        return Err(BadRequest::Method(request.method().clone()));
    }
    let authority = request.uri().authority().ok_or(BadRequest::NoAuthority)?;
    parse_authority(authority)
}

fn parse_authority(authority: &Authority) -> Result<SocketAddr, BadRequest> {
    if let Ok(address) = SocketAddr::from_str(authority.as_str()) {
        return Ok(crate::socket::canonical(address));
    }
    match authority.port_u16() {
        Some(_) if !authority.host().is_empty() && !authority.as_str().contains('@') => {
            Err(BadRequest::HostName(authority.host().to_owned()))
        }
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
            destination: "[fd00::2]:80".parse().unwrap(),
            client: "10.1.0.5:40000".parse().unwrap(),
            service: Some("web.shop.svc.cluster.local"),
            baggage: "k8s.namespace.name=shop",
        }
        .request(&mut StdRng::seed_from_u64(1))
        .unwrap();
        assert_eq!(request.uri().to_string(), "[fd00::2]:80");
        assert_eq!(
            destination(&request).unwrap(),
            "[fd00::2]:80".parse().unwrap()
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
    fn only_addresses_are_destinations() {
        assert!(matches!(
            destination(&connect("web.shop:80")),
            Err(BadRequest::HostName(_))
        ));
        assert_eq!(
            destination(&connect("10.0.0.1")),
            Err(BadRequest::NoAuthority)
        );
        let get = Request::builder()
            .uri("http://10.0.0.1:80/")
            .body(())
            .unwrap();
        assert!(matches!(destination(&get), Err(BadRequest::Method(_))));
        assert_eq!(
            destination(&connect("[::ffff:10.0.0.1]:80")).unwrap(),
            "10.0.0.1:80".parse().unwrap()
        );
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
            if let Ok(authority) = value.parse::<Authority>() {
                let _ = parse_authority(&authority);
            }
        }
    }
}
