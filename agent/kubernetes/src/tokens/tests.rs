//! Reviews by an API server.
use http::StatusCode;

use super::*;
use crate::testing::{ApiServer, Failure, TokenOwner};

fn reviewer(api: &ApiServer) -> TokenReviewer {
    TokenReviewer::new(api.client(), ReviewSettings::default())
}

fn reviews(api: &ApiServer) -> usize {
    api.requests("tokenreviews").len()
}

#[tokio::test]
async fn a_token_tells_account_and_pod() {
    let api = ApiServer::start().await;
    api.register_token("t", TokenOwner::new("shop", "web").bound_to("web-1", "u1"));
    let caller = reviewer(&api).authenticate("t", "").await.unwrap();
    let pod = BoundPod {
        name: "web-1".to_owned(),
        uid: "u1".to_owned(),
    };
    assert_eq!(
        caller,
        Caller {
            namespace: "shop".to_owned(),
            service_account: "web".to_owned(),
            pod: Some(pod),
        }
    );
}

#[tokio::test]
async fn unknown_and_misdirected_tokens_are_invalid() {
    let api = ApiServer::start().await;
    api.register_token(
        "t",
        TokenOwner::new("shop", "web").for_audiences(&["vault"]),
    );
    let reviewer = reviewer(&api);
    for token in ["t", "unknown", "", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
        let error = reviewer.authenticate(token, "").await.unwrap_err();
        assert!(matches!(error, CallerError::Invalid(_)), "{error}");
    }
    assert_eq!(reviews(&api), 2);
}

#[tokio::test]
async fn a_good_token_is_reviewed_once_in_a_while() {
    let api = ApiServer::start().await;
    api.register_token("t", TokenOwner::new("shop", "web"));
    let settings = ReviewSettings {
        remember: Duration::from_secs(5),
        ..ReviewSettings::default()
    };
    let reviewer = TokenReviewer::new(api.client(), settings);
    reviewer.authenticate("t", "").await.unwrap();
    api.revoke_token("t");
    reviewer.authenticate("t", "").await.unwrap();
    assert_eq!(reviews(&api), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    tokio::time::resume();
    assert!(reviewer.authenticate("t", "").await.is_err());
}

#[tokio::test]
async fn callers_with_one_token_share_a_review() {
    let api = ApiServer::start().await;
    api.register_token("t", TokenOwner::new("shop", "web"));
    let reviewer = reviewer(&api);
    let calls = (0..20).map(|_| reviewer.authenticate("t", ""));
    let outcomes = futures::future::join_all(calls).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(reviews(&api), 1);
}

#[tokio::test]
async fn a_refused_token_is_asked_about_again() {
    let api = ApiServer::start().await;
    let reviewer = reviewer(&api);
    assert!(reviewer.authenticate("t", "").await.is_err());
    api.register_token("t", TokenOwner::new("shop", "web"));
    reviewer.authenticate("t", "").await.unwrap();
}

#[tokio::test]
async fn a_server_in_trouble_is_no_verdict() {
    let api = ApiServer::start().await;
    api.register_token("t", TokenOwner::new("shop", "web"));
    let reviewer = reviewer(&api);
    let failures = [
        Failure::Refuse(StatusCode::INTERNAL_SERVER_ERROR),
        Failure::Refuse(StatusCode::TOO_MANY_REQUESTS),
        Failure::Refuse(StatusCode::FORBIDDEN),
        Failure::Reset,
    ];
    for failure in failures {
        let _fault = api.fault("tokenreviews", failure);
        let error = reviewer.authenticate("t", "").await.unwrap_err();
        assert!(
            matches!(error, CallerError::Unavailable(_)),
            "{failure:?}: {error}"
        );
    }
    reviewer.authenticate("t", "").await.unwrap();
}

#[test]
fn only_service_accounts_are_callers() {
    let named = |name: &str| {
        caller(&UserInfo {
            username: Some(name.to_owned()),
            ..UserInfo::default()
        })
    };
    assert!(named("system:serviceaccount:shop:web").is_some());
    for name in [
        "system:node:n1",
        "kubernetes-admin",
        "system:serviceaccount:shop",
        "system:serviceaccount:shop:",
        "system:serviceaccount::web",
        "system:serviceaccount:shop:web:x",
    ] {
        assert_eq!(named(name), None, "{name}");
    }
}
