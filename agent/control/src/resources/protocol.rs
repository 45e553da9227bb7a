//! What is spoken on a port, by Istio's rules of protocol selection.
use undermesh_model::service::AppProtocol;

/// Ports of SMTP, DNS, MySQL and MongoDB, whose servers speak first or are known to be TCP.
const KNOWN_TCP: [u16; 4] = [25, 53, 3306, 27017];

/// By `appProtocol`, else by the name of the port up to its first `-`, else by well-known ports.
///
/// Source: istio.io, "Protocol Selection"; Kubernetes API, `ServicePort.appProtocol`.
pub fn of_service_port(port: u16, name: &str, app_protocol: Option<&str>) -> AppProtocol {
    match app_protocol {
        Some("kubernetes.io/h2c") => return AppProtocol::Http2,
        Some("kubernetes.io/ws") => return AppProtocol::Http11,
        Some("kubernetes.io/wss") => return AppProtocol::Tls,
        _ => {}
    }
    let said = app_protocol.unwrap_or(name);
    let is_grpc_web = said
        .get(.."grpc-web".len())
        .is_some_and(|start| start.eq_ignore_ascii_case("grpc-web"));
    if is_grpc_web {
        return AppProtocol::Http11;
    }
    let prefix = said.split('-').next().unwrap_or_default();
    match named(prefix) {
        AppProtocol::Unknown if KNOWN_TCP.contains(&port) => AppProtocol::Tcp,
        found => found,
    }
}

/// By the name of a protocol, as ServiceEntries write it.
pub fn named(name: &str) -> AppProtocol {
    match &*name.to_ascii_lowercase() {
        "http" | "grpc-web" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        "tls" | "https" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_comes_before_the_name_and_the_name_before_the_port() {
        for (port, name, field, expected) in [
            (80, "http", None, AppProtocol::Http11),
            (80, "http-web", None, AppProtocol::Http11),
            (80, "http2-x", None, AppProtocol::Http2),
            (80, "grpc", None, AppProtocol::Grpc),
            (80, "GRPC-Web-x", None, AppProtocol::Http11),
            (80, "https", None, AppProtocol::Tls),
            (80, "tcp-db", Some("http"), AppProtocol::Http11),
            (80, "http", Some("kubernetes.io/h2c"), AppProtocol::Http2),
            (80, "http", Some("kubernetes.io/wss"), AppProtocol::Tls),
            (80, "web", None, AppProtocol::Unknown),
            (3306, "db", None, AppProtocol::Tcp),
            (3306, "http", None, AppProtocol::Http11),
            (443, "", None, AppProtocol::Unknown),
        ] {
            assert_eq!(
                of_service_port(port, name, field),
                expected,
                "{name} {field:?}"
            );
        }
    }
}
