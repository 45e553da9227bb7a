//! Probes as WorkloadGroups have them.
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read(value: Value) -> Result<Probe, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[test]
fn what_is_not_given_is_as_in_kubernetes() {
    let probe = read(json!({ "tcpSocket": { "port": 8080 } })).unwrap();
    assert_eq!(probe.pace, Pace::default());
    let target = Target {
        host: None,
        port: 8080,
    };
    assert_eq!(probe.check, Check::Tcp(target));
}

#[test]
fn a_request_is_read_with_its_headers() {
    let probe = read(json!({
        "periodSeconds": 5,
        "failureThreshold": 2,
        "httpGet": {
            "path": "healthz?full", "port": 8443, "scheme": "https", "host": "10.0.0.7",
            "httpHeaders": [{ "name": "Host", "value": "shop.example" }],
        },
    }))
    .unwrap();
    assert_eq!((probe.pace.period.as_secs(), probe.pace.failures), (5, 2));
    let Check::Http(http) = probe.check else {
        panic!("{probe:?}")
    };
    assert_eq!(
        (http.path.as_str(), http.scheme),
        ("/healthz?full", Scheme::Https)
    );
    assert_eq!(http.headers[0].0, "host");
}

#[test]
fn mistakes_are_named() {
    for (value, named) in [
        (json!({}), "0 of httpGet"),
        (
            json!({ "exec": { "command": ["true"] }, "tcpSocket": { "port": 1 } }),
            "2 of httpGet",
        ),
        (json!({ "grpc": { "port": 1 } }), "gRPC"),
        (json!({ "tcpSocket": { "port": 0 } }), "port is 0"),
        (json!({ "tcpSocket": { "port": 65536 } }), "port is 65536"),
        (json!({ "tcpSocket": { "port": 1, "host": "a b" } }), "host"),
        (
            json!({ "tcpSocket": { "port": 1 }, "periodSeconds": -1 }),
            "periodSeconds is -1",
        ),
        (
            json!({ "tcpSocket": { "port": 1 }, "failureThreshold": 1001 }),
            "failureThreshold",
        ),
        (json!({ "exec": { "command": [] } }), "0 words"),
        (json!({ "exec": { "command": ["a\0"] } }), "without NUL"),
        (
            json!({ "httpGet": { "port": 1, "scheme": "FTP" } }),
            "HTTP or HTTPS",
        ),
        (json!({ "httpGet": { "port": 1, "path": "/a b" } }), "path"),
        (
            json!({ "httpGet": { "port": 1, "httpHeaders": [{ "name": "a b" }] } }),
            "httpHeaders",
        ),
    ] {
        let error = read(value.clone()).unwrap_err();
        assert!(error.contains(named), "{value}: {error}");
    }
}

fn any_probe() -> impl Strategy<Value = Probe> {
    let target = ("[a-z0-9.]{0,12}", 1..=u16::MAX).prop_map(|(host, port)| Target {
        host: (!host.is_empty()).then_some(host),
        port,
    });
    let http = (target.clone(), any::<bool>(), "/[a-z/]{0,9}").prop_map(|(target, tls, path)| {
        Check::Http(HttpCheck {
            target,
            scheme: if tls { Scheme::Https } else { Scheme::Http },
            path: path.parse().unwrap(),
            headers: vec![("x-a".parse().unwrap(), "b".parse().unwrap())],
        })
    });
    let exec = prop::collection::vec("[ -~]{0,9}", 1..4).prop_map(Check::Exec);
    let check = prop_oneof![http, target.prop_map(Check::Tcp), exec];
    let pace = (0..90u64, 1..90u64, 1..90u64, 1..9u32, 1..9u32).prop_map(
        |(delay, timeout, period, successes, failures)| Pace {
            initial_delay: Duration::from_secs(delay),
            timeout: Duration::from_secs(timeout),
            period: Duration::from_secs(period),
            successes,
            failures,
        },
    );
    (check, pace).prop_map(|(check, pace)| Probe { check, pace })
}

proptest! {
    #[test]
    fn what_is_written_is_read(probe in any_probe()) {
        let written = serde_json::to_value(&probe).unwrap();
        prop_assert_eq!(read(written).unwrap(), probe);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,64}", number: i64) {
        let value = json!({
            "periodSeconds": number, "httpGet": { "path": text, "port": number, "host": text },
        });
        if let Ok(probe) = read(value) {
            prop_assert!(probe.pace.period.as_secs() <= MAX_SECONDS.unsigned_abs());
        }
    }
}
