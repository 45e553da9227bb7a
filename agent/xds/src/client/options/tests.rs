//! Tests of options: Istio's variables and the node's name on the wire.
use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Options, OptionsError> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Options::from_environment(variables.iter().map(owned))
}

#[test]
fn without_variables_it_is_istios_node_proxy_outside_kubernetes() {
    let options = read(&[]).unwrap();
    assert_eq!(options.address, Address::new(LOCAL_ADDRESS).unwrap());
    assert_eq!(options.roots, Roots::File(DEFAULT_ROOTS.into()));
    assert_eq!(options.token, Token::File(DEFAULT_TOKEN.into()));
    assert_eq!((&*options.cluster, &*options.network), ("Kubernetes", ""));
    assert_eq!(options.subscription, Subscription::Wildcard);
    assert_eq!(options.verified_name, None);
}

#[test]
fn inside_kubernetes_it_asks_istiod() {
    let options = read(&[
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("XDS_ADDRESS", ""),
    ])
    .unwrap();
    assert_eq!(options.address, Address::new(DEFAULT_ADDRESS).unwrap());
}

#[test]
fn every_variable_of_istio_is_read() {
    let options = read(&[
        ("XDS_ADDRESS", "https://control.example:443"),
        ("XDS_ROOT_CA", "/roots.pem"),
        ("ALT_XDS_HOSTNAME", "istiod.istio-system.svc"),
        ("AUTH_TOKEN", "/token"),
        ("XDS_HEADER_X-Team", "shop"),
        ("ISTIO_META_CLUSTER_ID", "east"),
        ("CLUSTER_ID", "west"),
        ("NETWORK", "n1"),
        ("NODE_NAME", "node-1"),
        ("XDS_ON_DEMAND", "true"),
    ])
    .unwrap();
    assert_eq!(options.address.uri().host(), Some("control.example"));
    assert_eq!(options.roots, Roots::File("/roots.pem".into()));
    assert_eq!(
        options.verified_name.as_deref(),
        Some("istiod.istio-system.svc")
    );
    assert_eq!(options.token, Token::File("/token".into()));
    assert_eq!(options.headers[0].0, "x-team");
    assert_eq!(options.headers[0].1, "shop");
    assert_eq!((&*options.cluster, &*options.network), ("east", "n1"));
    assert_eq!(&*options.node.name, "node-1");
    assert_eq!(options.subscription, Subscription::OnDemand);
}

#[test]
fn roots_and_tokens_may_be_written_out() {
    let pem = "-----BEGIN CERTIFICATE-----\n";
    let options = read(&[("XDS_ROOT_CA", pem), ("AUTH_TOKEN", "aaa.bbb.ccc")]).unwrap();
    assert_eq!(options.roots, Roots::Pem(pem.to_owned()));
    assert_eq!(options.token, Token::Text("aaa.bbb.ccc".into()));
    assert!(!format!("{options:?}").contains("bbb"));
    let options = read(&[("XDS_ROOT_CA", "SYSTEM"), ("CLUSTER_ID", "west")]).unwrap();
    assert_eq!(options.roots, Roots::System);
    assert_eq!(&*options.cluster, "west");
}

#[test]
fn values_that_mean_nothing_are_refused_by_name() {
    for (name, value) in [
        ("XDS_ADDRESS", "istiod"),
        ("XDS_ADDRESS", "http://istiod:15010"),
        ("XDS_ADDRESS", "https://"),
        ("INSTANCE_IP", "10.0.0"),
        ("XDS_ON_DEMAND", "yes"),
        ("XDS_HEADER_a b", "c"),
        ("ISTIO_METAJSON_LABELS", "{"),
    ] {
        let error = read(&[(name, value)]).expect_err(name).to_string();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn the_node_has_ztunnels_name_and_metadata() {
    let options = read(&[
        ("POD_NAME", "agent-x"),
        ("POD_NAMESPACE", "istio-system"),
        ("INSTANCE_IP", "10.0.0.7"),
        ("NODE_NAME", "node-1"),
        ("ISTIO_META_ISTIO_VERSION", "1.30"),
        ("ISTIO_META_NODE_NAME", "forged"),
        ("ISTIO_METAJSON_LABELS", r#"{"a": ["b", 1, true, null]}"#),
    ])
    .unwrap();
    let node = options.wire_node();
    assert_eq!(
        node.id,
        "ztunnel~10.0.0.7~agent-x.istio-system~istio-system.svc.cluster.local"
    );
    let fields = node.metadata.unwrap().fields;
    for (name, value) in [
        ("NAME", "agent-x"),
        ("NAMESPACE", "istio-system"),
        ("INSTANCE_IPS", "10.0.0.7"),
        ("NODE_NAME", "node-1"),
        ("CLUSTER_ID", "Kubernetes"),
        ("ISTIO_VERSION", "1.30"),
    ] {
        assert_eq!(fields.get(name), Some(&text(value)), "{name}");
    }
    let Some(Kind::StructValue(labels)) = fields["LABELS"].kind.clone() else {
        panic!("{fields:?}");
    };
    assert!(matches!(labels.fields["a"].kind, Some(Kind::ListValue(_))));
}

#[test]
fn a_node_without_an_address_says_so_as_ztunnel_does() {
    let node = read(&[("POD_NAME", "a"), ("POD_NAMESPACE", "b")])
        .unwrap()
        .wire_node();
    assert_eq!(node.id, "ztunnel~1.1.1.1~a.b~b.svc.cluster.local");
}
