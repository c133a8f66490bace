//! The real program over HTTPS: what a token grants access to, and that no secret appears in its log at level `trace`.

use crate::kit::Waifud;
use waifud_api::client::{ClientError, ListQuery};
use waifud_types::{Role, Secret};

fn status(error: &ClientError) -> u16 {
    error.problem().unwrap().status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_grants_access_over_https_and_never_appears_in_the_log() {
    let mut waifud = Waifud::start_with("log = 'trace'");
    let local = waifud.client();
    let secret = waifud.operator_token("laptop").await;
    let client =
        |token: Option<&str>| waifud.https_client(token.map(|token| Secret::new(token.to_owned())));

    let me = client(Some(secret.expose())).whoami().await.unwrap();
    assert_eq!(
        (me.name.as_str(), me.role),
        ("token=laptop", Role::Operator)
    );
    assert_eq!(me.from, "127.0.0.1");
    let laptop = client(Some(secret.expose()));
    laptop.instances(&ListQuery::default()).await.unwrap();
    let error = laptop.tokens(&ListQuery::default()).await.unwrap_err();
    assert_eq!(status(&error), 403);
    for token in [None, Some("waifud_wrong-horse")] {
        let error = client(token).instances(&ListQuery::default()).await;
        assert_eq!(status(&error.unwrap_err()), 401);
    }
    local.revoke_token("laptop").await.unwrap();
    assert_eq!(status(&laptop.whoami().await.unwrap_err()), 401);

    let log = waifud.kill();
    assert!(
        log.contains("TRACE") && log.contains("refused an unknown, revoked or expired token"),
        "{log}"
    );
    // The secret part follows `waifud_`, 16 public digits and `_`.
    for secret in [&secret.expose()[24..], "wrong-horse"] {
        assert!(!log.contains(secret), "the log has {secret}");
    }
}
