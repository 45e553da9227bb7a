//! The command over files and over an API server in the process.
use clap::Parser;
use http::StatusCode;
use serde_json::{Value as Json, json};
use undermesh_kubernetes::testing::{ApiServer, Failure};

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: AnalyzeArgs,
}

fn args(words: &[&str]) -> AnalyzeArgs {
    Cli::parse_from(std::iter::once(&"analyze").chain(words)).args
}

async fn no_cluster() -> Result<Client, io::Error> {
    Err(io::Error::other("no cluster here"))
}

/// Analyzes one file with this text; returns the summary and what was printed.
async fn analyzed(text: &str, options: &[&str]) -> (Summary, String) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.yaml"), text).unwrap();
    let path = directory.path().to_str().unwrap().to_owned();
    let words: Vec<&str> = options.iter().copied().chain([path.as_str()]).collect();
    let mut out = Vec::new();
    let summary = run(&args(&words), no_cluster(), &mut out).await.unwrap();
    (summary, String::from_utf8(out).unwrap())
}

const MISSPELT: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  acton: DENY
";

#[tokio::test]
async fn a_mistake_is_told_with_its_place_field_and_remedy() {
    let (summary, printed) = analyzed(MISSPELT, &[]).await;
    assert!(summary.is_failure());
    let line = printed.lines().find(|line| line.contains("acton")).unwrap();
    for part in [
        "error",
        "a.yaml:5",
        "AuthorizationPolicy shop/p",
        "spec.acton",
        "'action'",
    ] {
        assert!(line.contains(part), "{part}: {printed}");
    }
}

#[tokio::test]
async fn json_has_the_same_findings() {
    let (summary, printed) = analyzed(MISSPELT, &["-o", "json", "--level", "error"]).await;
    let answer: Json = serde_json::from_str(&printed).unwrap();
    assert_eq!(answer["errors"], summary.errors);
    assert_eq!(answer["objects"], 1);
    let finding = &answer["findings"][0];
    assert_eq!(finding["field"], "spec.acton");
    assert_eq!(finding["resource"]["name"], "p");
}

#[tokio::test]
async fn manifests_in_order_pass() {
    let text = "apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec:
  mtls: {mode: STRICT}
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: v, namespace: shop}
spec: {hosts: [web]}
";
    let (summary, printed) = analyzed(text, &[]).await;
    let wanted = Summary {
        objects: 2,
        infos: 1,
        ..Summary::default()
    };
    assert_eq!(summary, wanted, "{printed}");
    let (_, quiet) = analyzed(text, &["--level", "warning"]).await;
    assert_eq!(quiet, "No findings in 2 objects.\n");
}

#[tokio::test]
async fn a_missing_file_is_an_error() {
    let mut out = Vec::new();
    let args = args(&["/nonexistent/a.yaml"]);
    let summary = run(&args, no_cluster(), &mut out).await.unwrap();
    assert_eq!(summary.errors, 1);
    let printed = String::from_utf8(out).unwrap();
    assert!(printed.contains("/nonexistent/a.yaml"), "{printed}");
}

#[tokio::test]
async fn an_object_in_two_places_is_told() {
    let twice = format!("{MISSPELT}---\n{MISSPELT}").replace("acton", "action");
    let (summary, printed) = analyzed(&twice, &[]).await;
    assert_eq!(summary.errors, 1, "{printed}");
    assert!(printed.contains("a.yaml:1, which wins"), "{printed}");
}

#[test]
fn standard_input_is_read_in_its_place() {
    let mut examination = Examination::new(Settings::default());
    files::read(&["-".into()], &mut MISSPELT.as_bytes(), &mut examination);
    let verdict = examination.finish();
    assert_eq!(&*verdict.findings[0].file, "standard input");
    assert_eq!(verdict.objects, 1);
}

async fn on_cluster(api: &ApiServer, words: &[&str]) -> Result<(Summary, String), AnalyzeError> {
    let client = async { Ok::<_, io::Error>(api.client()) };
    let mut out = Vec::new();
    let summary = run(&args(words), client, &mut out).await?;
    Ok((summary, String::from_utf8(out).unwrap()))
}

fn policy(namespace: &str) -> Json {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": "DNEY"},
    })
}

#[tokio::test]
async fn objects_of_a_cluster_are_judged_like_files() {
    let api = ApiServer::start().await;
    api.install_istio();
    for namespace in ["shop", "other"] {
        api.put_namespace(namespace, &[]);
        api.put(policy(namespace));
    }
    let (all, _) = on_cluster(&api, &["--level", "error"]).await.unwrap();
    let (one, printed) = on_cluster(&api, &["--level", "error", "-n", "shop"])
        .await
        .unwrap();
    assert_eq!(all.errors, one.errors * 2);
    assert!(printed.contains("AuthorizationPolicy shop/p"), "{printed}");
    assert!(!printed.contains("other/p"), "{printed}");
}

#[tokio::test]
async fn a_cluster_without_istio_is_no_error() {
    let api = ApiServer::start().await;
    let (summary, printed) = on_cluster(&api, &[]).await.unwrap();
    assert!(!summary.is_failure(), "{printed}");
}

#[tokio::test]
async fn a_network_policy_of_the_cluster_that_keeps_the_mesh_out_is_told() {
    let api = ApiServer::start().await;
    api.put_namespace("shop", &[("istio.io/dataplane-mode", "ambient")]);
    api.put(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 8080}]}]},
    }));
    let (summary, printed) = on_cluster(&api, &[]).await.unwrap();
    assert_eq!(summary.warnings, 1, "{printed}");
    assert!(printed.contains("NetworkPolicy shop/web"), "{printed}");
}

#[tokio::test]
async fn what_may_not_be_listed_is_named() {
    let api = ApiServer::start().await;
    api.install_istio();
    let _fault = api.fault(
        "/peerauthentications",
        Failure::Refuse(StatusCode::FORBIDDEN),
    );
    let error = on_cluster(&api, &[]).await.unwrap_err().to_string();
    assert!(error.contains("cannot list peerauthentications"), "{error}");
}

#[tokio::test]
async fn without_files_and_cluster_the_remedy_is_told() {
    let error = run(&args(&[]), no_cluster(), &mut Vec::new())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("no cluster here; name files"),
        "{error}"
    );
}

#[tokio::test]
async fn a_network_policy_beside_its_labelled_namespace_is_told_with_its_line() {
    let text = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  ingress:
  - ports:
    - port: 8080
";
    let (summary, printed) = analyzed(text, &["--level", "warning"]).await;
    assert_eq!(summary.warnings, 1, "{printed}");
    for part in ["a.yaml:11", "NetworkPolicy shop/web", "15008"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let open = text.replace("8080", "15008");
    let (summary, printed) = analyzed(&open, &["--level", "warning"]).await;
    assert_eq!(summary.warnings, 0, "{printed}");
}
