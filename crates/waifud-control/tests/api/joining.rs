//! Joining: which join tokens admit a node, who may take over a node's name, and which certificate identifies a node.

use std::io;
use std::time::Duration;

use crate::common::{Server, anonymous, collect, hello, report};
use axum::body::Body;
use axum::http::Method;
use serde_json::json;
use waifud_api::agent::WatchFrame;
use waifud_api::hint::{HintAction, HintKind};
use waifud_api::join::{JOIN_TOKEN_HEADER, JoinRequest, Joined};
use waifud_control::Peer;
use waifud_pki::{NodeKey, NodePeer, certificates};
use waifud_types::{ByteSize, Digest, InstanceState};

fn joined(answer: &crate::common::Answer) -> Joined {
    serde_json::from_slice(&answer.bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_admits_one_key_and_answers_that_key_again() {
    let server = Server::start().await;
    let token = server.join_token(None).await;
    let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let first = joined(&server.ask_to_join(&token, &key, "alder").await.expect(200));
    let again = joined(&server.ask_to_join(&token, &key, "alder").await.expect(200));
    assert_eq!(first.node, again.node);
    let certificate = certificates(&again.certificate).unwrap().swap_remove(0);
    let peer = NodePeer::of(&certificate).unwrap();
    assert_eq!((peer.node, peer.key), (first.node, key.digest()));
    let refused = server.ask_to_join(&token, &other, "alder").await;
    let problem = refused.expect(401).problem();
    assert_eq!(problem.code, "invalid-join-token");
    assert!(problem.title.contains("another machine"), "{problem:?}");
    let kinds = server.kinds("alder").await;
    assert_eq!(kinds, ["node.admitted"]);
}

#[tokio::test]
async fn responses_with_secrets_are_not_cacheable() {
    let server = Server::start().await;
    let join_token = server.post("/v1/join-tokens", &json!({})).await;
    let token = json!({"name": "laptop", "role": "viewer"});
    let token = server.post("/v1/tokens", &token).await;
    for answer in [join_token, token] {
        let answer = answer.expect(201);
        assert_eq!(answer.headers.get("cache-control").unwrap(), "no-store");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_expired_and_unknown_join_tokens_admit_no_node() {
    let (server, clock) = Server::with_manual_clock().await;
    let key = NodeKey::generate().unwrap();

    let token = server.join_token(None).await;
    let listed = server.get("/v1/join-tokens").await.expect(200).json();
    let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed["items"][0]["state"], "unused");
    server
        .delete(&format!("/v1/join-tokens/{id}"))
        .await
        .expect(204);
    server
        .delete(&format!("/v1/join-tokens/{id}"))
        .await
        .expect(404);
    server.ask_to_join(&token, &key, "alder").await.expect(401);

    let token = server.join_token(None).await;
    let spent = server.join_token(None).await;
    let before_expiry = server.ask_to_join(&spent, &key, "birch").await;
    before_expiry.expect(200);
    clock.forward(Duration::from_hours(1));
    for (token, name) in [(&token, "alder"), (&spent, "birch")] {
        let problem = server.ask_to_join(token, &key, name).await;
        assert!(problem.expect(401).problem().title.contains("expired"));
    }
    let mut unknown = token.clone();
    unknown.secret = waifud_types::Secret::new([7; 32]);
    server
        .ask_to_join(&unknown, &key, "alder")
        .await
        .expect(401);
    server.get("/v1/nodes/alder").await.expect(404);
}

#[tokio::test]
async fn a_join_without_a_valid_token_is_refused_before_its_body_is_read() {
    let server = Server::start().await;
    let endless = || Body::from_stream(futures::stream::pending::<Result<Vec<u8>, io::Error>>());
    let ask = async |secret: &str, body: Body| {
        let header = (JOIN_TOKEN_HEADER, secret);
        let answer = server.agent_with(Method::POST, "/v1/agent/join", header, anonymous(), body);
        tokio::time::timeout(crate::common::DEADLINE, answer)
            .await
            .unwrap()
    };
    let wrong = JoinRequest::new(&[7; 32], String::new(), "a".parse().unwrap()).secret;
    for secret in [wrong.expose().as_str(), "x", ""] {
        let problem = ask(secret, endless()).await.expect(401).problem();
        assert_eq!(problem.code, "invalid-join-token");
    }
    // With a valid token in the header, only a small body is accepted.
    let token = server.join_token(None).await;
    let key = NodeKey::generate().unwrap();
    let request = JoinRequest::new(
        token.secret.expose(),
        key.request().unwrap(),
        "alder".parse().unwrap(),
    );
    let secret = request.secret.expose().clone();
    let large = ask(&secret, Body::from(vec![b' '; 17 << 10])).await;
    assert_eq!(large.expect(413).problem().code, "too-large");
    let body = serde_json::to_vec(&request).unwrap();
    ask(&secret, Body::from(body)).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_join_token_for_its_name_replaces_the_key_of_a_node() {
    let server = Server::start().await;
    let mut alder = server.join("alder", ByteSize::gib(1)).await;
    alder.watch_from_now().await;
    let new_key = NodeKey::generate().unwrap();
    let any = server.join_token(None).await;
    let problem = server
        .ask_to_join(&any, &new_key, "alder")
        .await
        .expect(409);
    assert_eq!(problem.problem().code, "name-taken");
    // A refused attempt does not use up the token.
    let named = server.join_token(Some("alder")).await;
    server
        .ask_to_join(&named, &new_key, "birch")
        .await
        .expect(409);
    let rejoined = joined(
        &server
            .ask_to_join(&named, &new_key, "alder")
            .await
            .expect(200),
    );
    assert_eq!(rejoined.node, alder.id);
    // The former key is accepted neither for requests nor for an open watch.
    let answer = alder.hello(&hello("alder", ByteSize::gib(1))).await;
    let problem = answer.expect(403).problem();
    assert_eq!(problem.code, "not-admitted");
    let join = HintAction::CreateJoinToken;
    let mut hints = problem.hints.iter();
    assert!(hints.any(|hint| hint.is(&join, HintKind::Node, "alder")));
    assert!(alder.watch_ends().await);
    // After another join, the answer to the former join is not repeated.
    let old = server.join_token(Some("alder")).await;
    let third = NodeKey::generate().unwrap();
    server.ask_to_join(&old, &third, "alder").await.expect(200);
    server
        .ask_to_join(&named, &new_key, "alder")
        .await
        .expect(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_join_requests_are_refused_and_do_not_use_up_the_token() {
    let server = Server::start().await;
    let token = server.join_token(None).await;
    let good = NodeKey::generate().unwrap();
    let secret =
        JoinRequest::new(token.secret.expose(), String::new(), "a".parse().unwrap()).secret;
    for (body, field) in [
        (json!({"secret": "x", "csr": "y", "name": "alder"}), "token"),
        (
            json!({"secret": secret, "csr": "y", "name": "alder"}),
            "csr",
        ),
        (json!({"csr": "y", "name": "alder"}), "secret"),
    ] {
        let answer = collect(
            server
                .agent(
                    Method::POST,
                    "/v1/agent/join",
                    anonymous(),
                    body.to_string(),
                )
                .await,
        )
        .await;
        assert!(answer.status.is_client_error());
        let problem = answer.problem();
        assert_eq!(problem.field.as_deref(), Some(field), "{problem:?}");
    }
    server.ask_to_join(&token, &good, "alder").await.expect(200);
    for bad in [
        json!({"expires_in_s": 1}),
        json!({"expires_in_s": 1_000_000_000_u64}),
    ] {
        let problem = server.post("/v1/join-tokens", &bad).await.expect(422);
        assert_eq!(problem.problem().field.as_deref(), Some("expires_in_s"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_routes_require_the_current_certificate_of_the_node() {
    let (server, alder) = Server::with_node(ByteSize::gib(8)).await;
    let birch = server.join("birch", ByteSize::gib(1)).await;
    let Peer::Certificate { from, node, .. } = alder.peer() else {
        unreachable!("agents have certificates");
    };
    let strangers = [
        anonymous(),
        Peer::Unknown,
        Peer::Unix { uid: 0 },
        // A valid certificate with a key that is not the node's current one.
        Peer::Certificate {
            from,
            node,
            key: Digest::from_bytes([9; 32]),
        },
        Peer::Certificate {
            from,
            node: birch.id,
            key: alder.key,
        },
    ];
    let digest = Digest::from_bytes([1; 32]);
    for (method, path) in [
        (Method::POST, "/v1/agent/hello".to_owned()),
        (Method::GET, "/v1/agent/watch".to_owned()),
        (Method::POST, "/v1/agent/report".to_owned()),
        (Method::GET, format!("/v1/agent/images/{digest}")),
        (Method::GET, format!("/v1/agent/bundles/{digest}")),
    ] {
        for peer in strangers {
            let answer = server
                .agent(method.clone(), &path, peer, Body::from("{}"))
                .await;
            assert_eq!(answer.status(), 403, "{method} {path} {peer:?}");
        }
    }
    // A node's certificate does not grant access to the routes of users.
    let answer = server
        .agent(Method::GET, "/v1/instances", alder.peer(), Body::empty())
        .await;
    let problem = collect(answer).await.expect(403).problem();
    assert!(problem.hint.unwrap().contains("certificate"));
}

/// As after a restore of a backup from before the node joined: its certificate is valid, and the database does not know it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_the_database_does_not_contain_is_refused() {
    let (server, _) = Server::with_node(ByteSize::gib(8)).await;
    let unknown = Peer::Certificate {
        from: "192.0.2.2:4321".parse().unwrap(),
        node: "0198c0de-0000-7000-8000-0000000000a1".parse().unwrap(),
        key: NodeKey::generate().unwrap().digest(),
    };
    let body = serde_json::to_vec(&hello("birch", ByteSize::gib(8))).unwrap();
    let answer = server
        .agent(Method::POST, "/v1/agent/hello", unknown, body)
        .await;
    let problem = collect(answer).await.expect(403).problem();
    assert_eq!(problem.code, "not-admitted");
    server.get("/v1/nodes/birch").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_can_read_and_report_only_its_own_objects() {
    let server = Server::start().await;
    let image = server.template().await;
    let mut alder = server.join("alder", ByteSize::gib(8)).await;
    let mut birch = server.join("birch", ByteSize::gib(8)).await;
    let placed = json!({"name": "web", "template": "debian-12", "placement": {"node": "alder"}});
    let web = server.created(&placed).await;
    alder.watch(None).await;
    let bundle = alder
        .until_sync()
        .await
        .into_iter()
        .find_map(|frame| match frame {
            WatchFrame::Put {
                object: waifud_api::agent::SliceObject::Instance(instance),
                ..
            } => Some(instance.bundle.digest),
            _ => None,
        })
        .unwrap();
    birch.watch(None).await;
    let slice = format!("{:?}", birch.until_sync().await);
    assert!(!slice.contains(&web.id.to_string()));
    let (bundle, image) = (
        format!("/v1/agent/bundles/{bundle}"),
        format!("/v1/agent/images/{image}"),
    );
    alder.get(&bundle).await.expect(200);
    alder.get(&image).await.expect(200);
    birch.get(&bundle).await.expect(404);
    birch.get(&image).await.expect(404);
    birch
        .report_instance(report(web.id, InstanceState::Failed))
        .await;
    let shown = server.instance("web").await;
    assert_eq!(shown.status.state, InstanceState::Pending);
    // A hello with the name of another node does not take over that node.
    let id = async |name: &str| server.get(&format!("/v1/nodes/{name}")).await.json()["id"].clone();
    let before = (id("alder").await, id("birch").await);
    birch
        .hello(&hello("alder", ByteSize::gib(8)))
        .await
        .expect(200);
    assert_eq!((id("alder").await, id("birch").await), before);
}

/// The files of a package, as an installation has them.
fn installation(root: &std::path::Path) {
    let dir = root.join("usr/share/waifud/package");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::create_dir_all(root.join("usr/sbin")).unwrap();
    std::fs::write(root.join("usr/sbin/waifud-agentd"), "a program").unwrap();
    for (name, text) in [
        ("control", "Version: 1.2.3\nArchitecture: amd64\n"),
        ("files", "usr/sbin/waifud-agentd\n"),
        ("postinst", "#!/bin/sh\n"),
        ("prerm", "#!/bin/sh\n"),
        ("postrm", "#!/bin/sh\n"),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn install_commands_that_no_machine_could_use_are_refused_and_create_no_token() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::with(|config| config.installation = root.path().to_owned()).await;
    let wanted = json!({"install": true});
    let refused = async |code: &str| {
        let answer = server.post("/v1/join-tokens", &wanted).await;
        answer.refused(409, code, "install");
        let tokens = server.get("/v1/join-tokens").await.expect(200).json();
        assert_eq!(tokens["items"], json!([]));
    };
    refused("not-packaged").await;
    installation(root.path());
    // waifud listens on loopback only.
    refused("not-reachable").await;
    let created = server.post("/v1/join-tokens", &json!({})).await;
    assert_eq!(created.expect(201).json()["install"], json!(null));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_install_script_and_the_packages_require_a_valid_join_token() {
    let root = tempfile::tempdir().unwrap();
    installation(root.path());
    let server = Server::with(|config| {
        config.installation = root.path().to_owned();
        config.addresses = vec![
            "https://127.0.0.1:7373".to_owned(),
            "https://192.0.2.7:7373".to_owned(),
        ];
    })
    .await;
    let pki = server.control.pki_dir();
    let authority = server.control.authority();
    let identity = authority.open_server(&pki, &[]).unwrap();
    let pin = waifud_pki::public_key_pin(&identity.chain()[0]).unwrap();

    let wanted = json!({"install": true, "name": "birch"});
    let created = server.post("/v1/join-tokens", &wanted).await.expect(201);
    let command = created.json()["install"]["run"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(command.contains(&pin), "{command}");
    assert!(
        command.contains(" https://192.0.2.7:7373/v1/agent/install | sudo sh"),
        "{command}"
    );
    let text = created.json()["token"].as_str().unwrap().to_owned();
    let token = waifud_api::join::JoinToken::parse(&text).unwrap();
    let secret = waifud_api::join::secret_text(token.secret.expose());
    assert!(command.contains(&format!("'waifud-join-token: {}'", secret.expose())));

    let get = async |path: &str, secret: &str| {
        let header = (JOIN_TOKEN_HEADER, secret);
        server
            .agent_with(Method::GET, path, header, anonymous(), Body::empty())
            .await
    };
    let script = get("/v1/agent/install", secret.expose()).await.expect(200);
    assert_eq!(script.headers.get("cache-control").unwrap(), "no-store");
    let script = String::from_utf8(script.bytes).unwrap();
    assert!(script.contains(&format!("\ntoken='{text}'\n")), "{script}");
    assert!(script.contains("\nname='birch'\n"), "{script}");
    let deb = get("/v1/agent/packages/deb", secret.expose())
        .await
        .expect(200);
    assert!(deb.bytes.starts_with(b"!<arch>\ndebian-binary"));
    let tarball = get("/v1/agent/packages/tarball", secret.expose()).await;
    assert!(tarball.expect(200).bytes.starts_with(&[0x1f, 0x8b]));
    get("/v1/agent/packages/rpm", secret.expose())
        .await
        .expect(404);

    for wrong in ["", "x", "c2VjcmV0"] {
        let script = get("/v1/agent/install", wrong).await.expect(401);
        let script = String::from_utf8(script.bytes).unwrap();
        assert!(
            script.starts_with("printf ") && script.ends_with("exit 1\n"),
            "{script}"
        );
        let answer = get("/v1/agent/packages/deb", wrong).await.expect(401);
        assert_eq!(answer.problem().code, "invalid-join-token");
    }
}
