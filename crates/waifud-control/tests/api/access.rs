//! Access control: every route with every kind of credential, and the life of tokens.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::common::{ManualClock, Server, collect};
use axum::body::Body;
use axum::http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use waifud_control::Peer;
use waifud_control::auth::access::{Access, ROUTES};
use waifud_types::{ByteSize, Digest, NodeId, Role, Timestamp};

/// A new address at each call, so that no request is refused for the failed attempts of another.
fn new_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0x0a00_0001);
    let address = Ipv4Addr::from(NEXT.fetch_add(1, Ordering::Relaxed));
    (address, 40000).into()
}

fn tls() -> Peer {
    Peer::Tls {
        from: new_address(),
    }
}

/// A kind of caller and what it presents.
struct Credential {
    name: &'static str,
    peer: Box<dyn Fn() -> Peer>,
    token: Option<String>,
    /// The role that it grants; `Err` is the status on routes that require a role.
    role: Result<Role, u16>,
    /// Whether it is the certificate of an admitted node with that node's current key.
    admitted: bool,
}

/// A peer with a certificate for this node and key.
fn certificate(node: NodeId, key: Digest) -> Box<dyn Fn() -> Peer> {
    Box::new(move || Peer::Certificate {
        from: new_address(),
        node,
        key,
    })
}

async fn credentials(server: &Server, clock: &ManualClock) -> Vec<Credential> {
    let revoked = server.token("revoked", "admin", None).await;
    server.delete("/v1/tokens/revoked").await.expect(204);
    let expired = server.token("expired", "admin", Some(60)).await;
    clock.forward(Duration::from_mins(1));
    let row = |name, peer, token, role| Credential {
        name,
        peer,
        token,
        role,
        admitted: false,
    };
    let by_tls = |name, token: Option<String>, role| row(name, Box::new(tls), token, role);
    let unix = || -> Box<dyn Fn() -> Peer> { Box::new(|| Peer::Unix { uid: 1000 }) };
    let viewer = server.token("viewer", "viewer", None).await;
    let operator = server.token("operator", "operator", Some(3600)).await;
    let admin = server.token("admin", "admin", None).await;
    let mut forged = admin.clone();
    let last = forged.pop().unwrap();
    forged.push(if last == 'A' { 'E' } else { 'A' });
    let mut rows = vec![
        by_tls("none", None, Err(401)),
        by_tls("garbage", Some("hunter2".into()), Err(401)),
        by_tls(
            "an admin's token with another last character",
            Some(forged),
            Err(401),
        ),
        by_tls("revoked", Some(revoked), Err(401)),
        by_tls("expired", Some(expired), Err(401)),
        by_tls("viewer", Some(viewer.clone()), Ok(Role::Viewer)),
        by_tls("operator", Some(operator), Ok(Role::Operator)),
        by_tls("admin", Some(admin.clone()), Ok(Role::Admin)),
        row("unix socket", unix(), None, Ok(Role::Admin)),
        row(
            "a viewer's token at the unix socket",
            unix(),
            Some(viewer),
            Ok(Role::Viewer),
        ),
        row(
            "garbage at the unix socket",
            unix(),
            Some("x".into()),
            Err(401),
        ),
        row(
            "a unix socket peer without credentials",
            Box::new(|| Peer::Unknown),
            None,
            Err(403),
        ),
    ];

    // Certificates of the same certificate authority: of a node, of a node that has joined again since, and of an
    // unknown node.
    let own = server.join("alder", ByteSize::gib(8)).await;
    let before = server.join("birch", ByteSize::gib(8)).await;
    let another = server.join("birch", ByteSize::gib(8)).await;
    assert_eq!(before.id, another.id);
    let stranger = NodeId::from_uuid(uuid::Uuid::from_u128(9));
    for (name, node, key, token, admitted) in [
        ("own node's certificate", own.id, own.key, None, true),
        (
            "another node's certificate",
            another.id,
            another.key,
            None,
            true,
        ),
        (
            "a node's certificate with another node's key",
            own.id,
            another.key,
            None,
            false,
        ),
        (
            "a certificate from before its node joined again",
            before.id,
            before.key,
            None,
            false,
        ),
        (
            "an unknown node's certificate",
            stranger,
            own.key,
            None,
            false,
        ),
        (
            "a certificate with an admin's token",
            own.id,
            own.key,
            Some(admin),
            true,
        ),
    ] {
        rows.push(Credential {
            admitted,
            ..row(name, certificate(node, key), token, Err(403))
        });
    }
    rows
}

/// The status of a route's answer at the listener that serves this credential; `None` where access is granted.
fn expected(access: Access, credential: &Credential) -> Option<u16> {
    let by_unix = matches!((credential.peer)(), Peer::Unix { .. } | Peer::Unknown);
    match (access, credential.role) {
        // The unix socket does not serve these routes.
        (Access::Node | Access::JoinToken, _) if by_unix => Some(404),
        (Access::Node, _) if !credential.admitted => Some(403),
        (Access::Anyone | Access::Node | Access::JoinToken, _) => None,
        (Access::AtLeast(needed), Ok(role)) if role >= needed => None,
        (Access::AtLeast(_), Ok(_)) => Some(403),
        (Access::AtLeast(_), Err(refused)) => Some(refused),
    }
}

#[tokio::test]
async fn every_route_enforces_its_access_rule_for_every_kind_of_credential() {
    let (server, clock) = Server::with_manual_clock().await;
    let credentials = credentials(&server, &clock).await;
    let digest = format!("sha256:{}", "0".repeat(64));
    let mut asked = 0;
    for (method, route, access) in ROUTES {
        let path = route
            .replace("{name}", "missing")
            .replace("{id}", "0")
            .replace("{digest}", &digest)
            .replace("{instance}", "missing")
            .replace("{kind}", "deb");
        for credential in &credentials {
            let at = format!("{method} {route} with {}", credential.name);
            let peer = (credential.peer)();
            let token = credential.token.as_deref();
            let answer = server.call_as(peer, token, method, &path, "{}").await;
            let status = answer.status().as_u16();
            asked += 1;
            // The body of a granted request may be an endless stream, so it is not read.
            match expected(*access, credential) {
                // Their handlers require a join token in a header, which no credential contains.
                None if *access == Access::JoinToken && *method == "GET" => {
                    assert_eq!(status, 401, "{at}");
                }
                None => assert!(![401, 403, 405, 429].contains(&status), "{at}: {status}"),
                Some(expected) => {
                    assert_eq!(status, expected, "{at}");
                    let answer = collect(answer).await;
                    let problem = answer.problem();
                    let challenged = answer.headers.contains_key("www-authenticate");
                    assert_eq!(challenged, status == 401, "{at}");
                    assert!(problem.hint.is_some(), "{at}");
                    if problem.code == "insufficient-role" {
                        let (Access::AtLeast(needed), Ok(own)) = (access, credential.role) else {
                            unreachable!("{at}");
                        };
                        assert!(problem.title.contains(needed.as_str()), "{at}");
                        assert!(problem.title.contains(own.as_str()), "{at}");
                    }
                }
            }
        }
    }
    assert_eq!(asked, ROUTES.len() * credentials.len());
}

#[tokio::test]
async fn wrong_tokens_get_identical_answers_and_are_rate_limited() {
    let (server, clock) = Server::with_manual_clock().await;
    let credentials = credentials(&server, &clock).await;
    let mut answers: Vec<_> = Vec::new();
    for credential in credentials
        .iter()
        .filter(|c| c.token.is_some() && c.role == Err(401))
    {
        let token = credential.token.as_deref();
        let answer = collect(server.call_as(tls(), token, "GET", "/v1/nodes", "").await).await;
        let mut problem = answer.problem();
        problem.request_id = None;
        answers.push((answer.status, problem));
    }
    assert!(answers.len() > 3);
    assert!(
        answers.windows(2).all(|pair| pair[0] == pair[1]),
        "{answers:?}"
    );

    let guesser = tls();
    let good = server.token("good", "viewer", None).await;
    let ask = async |token: &str| {
        server
            .call_as(guesser, Some(token), "GET", "/v1/nodes", "")
            .await
    };
    for _ in 0..10 {
        assert_eq!(ask("guess").await.status(), 401);
    }
    let refused = ask("guess").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "6");
    assert_eq!(
        ask(&good).await.status(),
        200,
        "a valid token is accepted while its address is rate limited"
    );
    assert_eq!(
        server
            .call_as(tls(), Some(&good), "GET", "/v1/nodes", "")
            .await
            .status(),
        200,
        "other callers are not limited"
    );
    clock.forward(Duration::from_secs(6));
    assert_eq!(
        ask("guess").await.status(),
        401,
        "the limit allows one more attempt"
    );
}

#[tokio::test]
async fn revoking_a_token_ends_its_waits() {
    let (server, _) = Server::with_manual_clock().await;
    server.template().await;
    let waiting = json!({"name": "web", "template": "debian-12"});
    server.create(&waiting).await.expect(201);
    let token = server.token("laptop", "viewer", None).await;
    let path = "/v1/instances/web?wait=1h&for=running";
    let wait = server.call_as(tls(), Some(&token), "GET", path, "");
    let revoke = async {
        // The token's last use is recorded once its request is accepted.
        while server.get("/v1/tokens").await.json()["items"][0]["last_used_at"].is_null() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.delete("/v1/tokens/laptop").await.expect(204);
    };
    let both = async { tokio::join!(wait, revoke).0 };
    let answer = tokio::time::timeout(crate::common::DEADLINE, both)
        .await
        .unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(collect(answer).await.problem().code, "invalid-credential");
}

#[tokio::test]
async fn event_streams_are_limited_per_token() {
    let (server, _) = Server::with_manual_clock().await;
    let token = server.token("laptop", "viewer", None).await;
    let other = server.token("desk", "viewer", None).await;
    let follow = async |token: &str| {
        server
            .call_as(tls(), Some(token), "GET", "/v1/events?watch=true", "")
            .await
    };
    let mut followers = Vec::new();
    let refused = loop {
        let answer = follow(&token).await;
        if answer.status() != 200 {
            break answer;
        }
        followers.push(answer);
        assert!(followers.len() < 1000, "no limit");
    };
    assert_eq!(followers.len(), 128);
    assert_eq!(refused.status(), 429);
    assert_eq!(
        collect(refused).await.problem().code,
        "too-many-open-requests"
    );
    assert_eq!(
        follow(&other).await.status(),
        200,
        "other callers are not limited"
    );
    followers.pop();
    assert_eq!(follow(&token).await.status(), 200);
}

#[tokio::test]
async fn events_name_the_token_as_actor_and_its_last_use_is_recorded_once_a_minute() {
    let (server, clock) = Server::with_manual_clock().await;
    server.template().await;
    let secret = server.token("laptop", "operator", None).await;
    assert!(
        secret.starts_with("waifud_"),
        "secret scanners look for the prefix"
    );
    let from = new_address();
    let body = json!({"name": "web", "template": "debian-12"}).to_string();
    let answer = server
        .call_as(
            Peer::Tls { from },
            Some(&secret),
            "POST",
            "/v1/instances",
            body,
        )
        .await;
    assert_eq!(answer.status(), 201);
    let events = server
        .get("/v1/events?object=instance/web")
        .await
        .expect(200)
        .json();
    let actor = &events["items"][0]["actor"];
    assert_eq!(actor["name"], "token=laptop");
    assert_eq!(actor["from"], from.ip().to_string());

    let used = async || {
        let page = server.get("/v1/tokens").await.expect(200).json();
        assert!(!page.to_string().contains(&secret));
        let token = page["items"][0].clone();
        assert_eq!(token["created_by"], "uid=0");
        let last_used = token["last_used_at"].as_str().unwrap();
        last_used.parse::<Timestamp>().unwrap()
    };
    let first = used().await;
    let ask = async || {
        server
            .call_as(tls(), Some(&secret), "GET", "/v1/whoami", "")
            .await
    };
    clock.forward(Duration::from_secs(59));
    assert_eq!(ask().await.status(), 200);
    assert_eq!(used().await, first, "the last use is written once a minute");
    clock.forward(Duration::from_secs(1));
    let who = collect(ask().await).await.expect(200).json();
    assert_eq!(
        (&who["name"], &who["role"]),
        (&json!("token=laptop"), &json!("operator"))
    );
    assert_eq!(used().await, first + Duration::from_mins(1));
}

#[tokio::test]
async fn idempotency_keys_are_scoped_to_the_token_and_not_to_its_name() {
    let (server, _) = Server::with_manual_clock().await;
    server.template().await;
    let create = async |token: &str| {
        let request = axum::http::Request::builder()
            .method(Method::POST)
            .uri("/v1/instances")
            .header("authorization", format!("bearer {token}"))
            .header("idempotency-key", "k")
            .body(Body::from(json!({"template": "debian-12"}).to_string()))
            .unwrap();
        let mut request = request;
        request
            .extensions_mut()
            .insert(axum::extract::ConnectInfo(tls()));
        let router = waifud_control::http::user_router(server.control.clone());
        let answer = tower::ServiceExt::oneshot(router, request).await.unwrap();
        collect(answer).await.expect(201).instance().id
    };
    let first = server.token("ci", "operator", None).await;
    let made = create(&first).await;
    assert_eq!(create(&first).await, made);
    let other = server.token("other", "operator", None).await;
    assert_ne!(create(&other).await, made);
    server.delete("/v1/tokens/ci").await.expect(204);
    let second = server.token("ci", "operator", None).await;
    assert_ne!(create(&second).await, made);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_a_token_ends_its_event_streams() {
    let (server, _) = Server::with_manual_clock().await;
    let secret = server.token("panel", "viewer", None).await;
    let other = server.token("other", "viewer", None).await;
    let open = async |secret: &str| {
        let answer = server
            .call_as(tls(), Some(secret), "GET", "/v1/events?watch=true", "")
            .await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.into_body()
    };
    let (mut stream, mut stays) = (open(&secret).await, open(&other).await);
    server.delete("/v1/tokens/panel").await.expect(204);
    tokio::time::timeout(crate::common::DEADLINE, async {
        while let Some(frame) = stream.frame().await {
            frame.unwrap();
        }
    })
    .await
    .unwrap();
    // The stream of the other token stays open and receives the event.
    tokio::time::timeout(crate::common::DEADLINE, async {
        loop {
            let frame = stays.frame().await.unwrap().unwrap();
            let text = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
            if text.contains("token.revoked") {
                return;
            }
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn invalid_tokens_are_refused_and_change_nothing() {
    let (server, _) = Server::with_manual_clock().await;
    server.token("ci", "viewer", None).await;
    let before = server.footprint().await;
    for (body, status, field) in [
        (json!({"name": "ci", "role": "viewer"}), 409, "name"),
        (json!({"name": "C I", "role": "viewer"}), 422, "name"),
        (json!({"name": "x", "role": "root"}), 422, "role"),
        (json!({"name": "x"}), 422, "role"),
        (
            json!({"name": "x", "role": "viewer", "expires_in_s": 59}),
            422,
            "expires_in_s",
        ),
        (
            json!({"name": "x", "role": "viewer", "expires_in_s": u64::MAX}),
            422,
            "expires_in_s",
        ),
    ] {
        let problem = server
            .post("/v1/tokens", &body)
            .await
            .expect(status)
            .problem();
        assert_eq!(problem.field.as_deref(), Some(field), "{body}");
    }
    assert_eq!(server.footprint().await, before);
}
