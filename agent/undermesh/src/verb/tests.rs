use clap::Parser;

use super::*;
use crate::{
    api::tests::{Served, serve},
    command::{Cli, Verb},
};

/// What a command line shows, or its error line.
async fn shown(served: &Served, line: &str) -> Result<String, String> {
    let socket = served.socket.to_str().unwrap();
    let words = ["undermesh"]
        .into_iter()
        .chain(line.split(' '))
        .chain(["--socket", socket]);
    let Verb::Talk(verb) = Cli::try_parse_from(words).unwrap().verb else {
        panic!("{line}")
    };
    answer(verb).await.map_err(|error| error.to_string())
}

const ENROLL: &str = "enroll --netns /n/cart --namespace shop --name cart-0 --service-account cart";

#[tokio::test]
async fn a_pod_is_enrolled_and_released_by_its_netns() {
    let served = serve();
    let table = "NAMESPACE   NAME     SERVICE ACCOUNT   STATE    ADDRESSES   CONNECTIONS   NETNS\n\
                 shop        cart-0   cart              active   10.8.1.23   0             /n/cart\n";
    assert_eq!(shown(&served, ENROLL).await.unwrap(), table);
    assert_eq!(shown(&served, "list").await.unwrap(), table);
    let released = shown(&served, "release --netns /n/cart --timeout 1ms").await;
    assert_eq!(released.unwrap(), "pod shop/cart-0 released\n");
    assert_eq!(
        shown(&served, "list").await.unwrap(),
        "no pods are enrolled\n"
    );
    let error = shown(&served, "release --netns /n/cart").await.unwrap_err();
    assert_eq!(
        error,
        "no enrolled pod has the network namespace /n/cart; see 'undermesh list'"
    );
}

#[tokio::test]
async fn answers_come_as_json_and_yaml() {
    let served = serve();
    shown(&served, ENROLL).await.unwrap();
    let json: Value = serde_json::from_str(&shown(&served, "list -o json").await.unwrap()).unwrap();
    let yaml: Value =
        serde_norway::from_str(&shown(&served, "list -o yaml").await.unwrap()).unwrap();
    assert_eq!(json, yaml);
    assert_eq!(json[0]["serviceAccount"], "cart");
    let dump = shown(&served, "config dump").await.unwrap();
    assert!(serde_json::from_str::<Value>(&dump).is_ok());
    assert_eq!(
        shown(&served, "config dump -o table").await.unwrap(),
        "SECTION     OBJECTS\nworkloads   1\n"
    );
}

#[tokio::test]
async fn the_log_level_and_the_status_are_shown() {
    let served = serve();
    assert_eq!(
        shown(&served, "log --level info,h2=off").await.unwrap(),
        "info,h2=off\n"
    );
    assert_eq!(shown(&served, "log").await.unwrap(), "info,h2=off\n");
    let status = shown(&served, "status").await.unwrap();
    assert!(status.contains("Ready:          yes\n"), "{status}");
    assert_eq!(
        shown(&served, "connections").await.unwrap(),
        "no connections are open\n"
    );
    assert_eq!(
        shown(&served, "certificates").await.unwrap(),
        "no identities are in use\n"
    );
}

#[tokio::test]
async fn a_refusal_is_one_line() {
    let served = serve();
    let error = shown(
        &served,
        "release --namespace shop --name none --timeout 1ms",
    )
    .await
    .unwrap_err();
    assert_eq!(error, "shop/none is not enrolled; list the pods");
}
