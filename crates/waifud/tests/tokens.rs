//! The real program over HTTPS with a token, and no secret in its log at the most verbose level.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use waifud_api::CreateToken;
use waifud_api::client::{Client, ClientError, ListQuery, Trust};
use waifud_pki::{certificates, client_config};
use waifud_types::{Role, Secret};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _may_have_ended = self.0.kill();
        let _may_have_ended = self.0.wait();
    }
}

fn status(error: &ClientError) -> u16 {
    error.problem().unwrap().status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_over_https_and_is_not_logged() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().display();
    let config = dir.path().join("waifud.toml");
    let text = format!(
        "socket = '{home}/u.sock'\nstate_dir = '{home}/state'\n\
         listen = ['127.0.0.1:0']\nlog = 'trace'"
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_waifud"))
        .arg("--config")
        .arg(&config)
        .stderr(Stdio::piped())
        .spawn()
        .map(Killed)
        .unwrap();
    let mut stderr = BufReader::new(child.0.stderr.take().unwrap());
    let mut log = String::new();
    let at = loop {
        let mut line = String::new();
        assert_ne!(
            stderr.read_line(&mut line).unwrap(),
            0,
            "waifud ended: {log}"
        );
        log.push_str(&line);
        if let Some((_, rest)) = line.split_once("listen=[") {
            break rest.split(']').next().unwrap().to_owned();
        }
    };
    let rest = std::thread::spawn(move || {
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        rest
    });

    let local = Client::unix(&dir.path().join("u.sock")).unwrap();
    let request = CreateToken {
        name: "laptop".to_owned(),
        role: Role::Operator,
        expires_in_s: None,
    };
    let secret = local.create_token(&request).await.unwrap().secret;
    let ca = std::fs::read_to_string(dir.path().join("state/pki/ca.crt")).unwrap();
    let tls = client_config(&certificates(&ca).unwrap()[0], None).unwrap();
    let url = format!("https://{at}").parse().unwrap();
    let client = |token: Option<&str>| {
        let token = token.map(|token| Secret::new(token.to_owned()));
        Client::https(&url, &Trust::Only(tls.clone()), token).unwrap()
    };

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

    child.0.kill().unwrap();
    log.push_str(&rest.join().unwrap());
    assert!(
        log.contains("TRACE") && log.contains("a token was refused"),
        "{log}"
    );
    // The part after `waifud_`, the 16 public digits, and `_`.
    for secret in [&secret.expose()[24..], "wrong-horse"] {
        assert!(!log.contains(secret), "the log has {secret}");
    }
}
