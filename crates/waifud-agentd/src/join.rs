//! `waifud-agentd join`, and the daemon's wait for it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use waifud_agent::Membership;
use waifud_api::join::JoinToken;
use waifud_kit::error::with_causes;
use waifud_types::Name;

use crate::config::Config;
use crate::host;

/// The size limit of a token file. A token has a few hundred bytes.
const TOKEN_MAX: u64 = 8192;
/// How often the daemon checks whether its machine has joined.
const CHECK_PERIOD: Duration = Duration::from_millis(500);
/// How often the daemon checks whether its machine has joined again.
const REPLACED_PERIOD: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub struct JoinArguments {
    /// The token printed by `waifuctl node token create`. Other users can see command lines, so prefer --token-file.
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the token; - reads it from standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Address of waifud, instead of the addresses in the token. Can be repeated.
    #[arg(long, value_name = "URL")]
    server: Vec<String>,
    /// Name of the node, instead of `node` in agentd.toml or the hostname.
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Join again although this machine is already a node. It gets a new key, and can join another waifud.
    #[arg(long)]
    again: bool,
}

/// Makes this machine a node.
pub async fn join(config: &Config, arguments: JoinArguments) -> anyhow::Result<()> {
    let text = read_token(&arguments)?;
    let token = JoinToken::parse(&text)?;
    host::ensure_traversable_dir(&config.state_dir)?;
    let before = Membership::open(&config.state_dir)?;
    if let Some(member) = before.as_ref().filter(|_| !arguments.again) {
        ensure!(
            member.is_of(token.ca),
            "this machine is node {} of another waifud, at {}; pass --again to leave that one (its instances here become \
             unmanaged)",
            member.name(),
            member.addresses().join(", ")
        );
        let asked = member.is_admitted().await;
        if !matches!(asked, Ok(false)) {
            println!(
                "this machine is already node {}; nothing was changed (pass --again to join again)",
                member.name()
            );
            if let Err(error) = asked {
                println!(
                    "waifud could not be asked whether it still admits this node: {}",
                    with_causes(&error)
                );
            }
            return Ok(());
        }
        println!(
            "waifud does not admit this machine as node {} any more; joining again",
            member.name()
        );
    }
    let name = match arguments.name {
        Some(name) => name,
        None => config.node_name()?,
    };
    let member = Membership::join(&config.state_dir, &token, &arguments.server, name).await?;
    println!("joined as {}", member.name());
    if before.is_some() {
        println!("a running waifud-agentd restarts with the new key within a few seconds");
    }
    Ok(())
}

fn read_token(arguments: &JoinArguments) -> anyhow::Result<String> {
    let from = match (&arguments.token, &arguments.token_file) {
        (Some(token), _) => return Ok(token.clone()),
        (None, Some(file)) => file,
        (None, None) => bail!("a token is required: pass --token TOKEN or --token-file FILE"),
    };
    let mut text = String::new();
    let read = if from == Path::new("-") {
        std::io::stdin().take(TOKEN_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(from).and_then(|file| file.take(TOKEN_MAX).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read the token from {}", from.display()))?;
    Ok(text)
}

/// Returns when this machine has joined again, as another node or with another key than `member`.
pub async fn replaced(config: &Config, member: &Membership) {
    loop {
        tokio::time::sleep(REPLACED_PERIOD).await;
        match Membership::open(&config.state_dir) {
            Ok(Some(now)) if !now.is_same(member) => return,
            // Without the file, the daemon continues with what it has read.
            _ => {}
        }
    }
}

/// Waits until this machine is a node, and logs that it waits.
pub async fn wait(config: &Config) -> anyhow::Result<Membership> {
    let mut logged = false;
    loop {
        if let Some(member) = Membership::open(&config.state_dir)? {
            tracing::info!(node = %member.node(), addresses = ?member.addresses(), "this machine is a node");
            return Ok(member);
        }
        if !logged {
            tracing::warn!(
                "waiting: this machine has not joined. Run `waifuctl node token create` on waifud's machine, then \
                 `waifud-agentd join --token-file -` here"
            );
            logged = true;
        }
        tokio::time::sleep(CHECK_PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use waifud_types::{Digest, Secret};

    use super::*;
    use waifud_kit::testing::captured_log::CapturedLog;

    #[test]
    fn a_refused_join_is_explained_once() {
        let problem = waifud_api::Problem::new(403, "invalid-join-token", "the token has expired");
        let refused = waifud_api::agent_client::AgentClientError::Problem(Box::new(problem));
        let error = anyhow::Error::from(waifud_agent::MembershipError::Refused(refused));
        assert_eq!(
            waifud_kit::error::with_causes(error.as_ref()),
            "cannot join: waifud refused the request: the token has expired"
        );
    }

    #[tokio::test]
    async fn a_join_that_fails_shows_neither_the_token_nor_its_secret() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            node: Some("alder".parse().unwrap()),
            state_dir: dir.path().to_owned(),
            ..Config::default()
        };
        let token = JoinToken {
            ca: Digest::from_bytes([1; 32]),
            secret: Secret::new([0xa7; 32]),
            // Nothing listens there.
            addresses: vec!["https://127.0.0.1:1".to_owned()],
        };
        let text = token.to_text().expose().clone();
        let log = CapturedLog::begin();
        // The token as it is, and with its last characters lost.
        for (given, words) in [(text.as_str(), "127.0.0.1:1"), (&text[..60], "join token")] {
            let file = dir.path().join("token");
            std::fs::write(&file, given).unwrap();
            let arguments = JoinArguments {
                token: None,
                token_file: Some(file),
                server: Vec::new(),
                name: None,
                again: false,
            };
            let error = join(&config, arguments).await.unwrap_err();
            let shown = format!("{error:#}\n{error:?}\n{}", log.text());
            assert!(shown.contains(words), "{shown}");
            // The secret's bytes are all the same, so each part of it has these characters.
            for secret in ["p6enp6en", "a7a7a7a7", "167, 167, 167", given] {
                assert!(!shown.contains(secret), "{secret}: {shown}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_notices_that_its_machine_has_joined_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: dir.path().to_owned(),
            ..Config::default()
        };
        let write = |key: &str, address: &str| {
            let identity = serde_json::json!({
                "node": "0198c0de-0000-7000-8000-00000000abcd", "name": "birch", "key": key, "certificate": "",
                "ca": "", "addresses": [address],
            });
            std::fs::write(dir.path().join("identity.json"), identity.to_string()).unwrap();
        };
        write("one", "https://192.0.2.9:7373");
        let member = Membership::open(dir.path()).unwrap().unwrap();
        let mut replaced = std::pin::pin!(replaced(&config, &member));
        let mut within_a_minute = async || {
            let limit = Duration::from_mins(1);
            tokio::time::timeout(limit, &mut replaced).await.is_ok()
        };
        assert!(!within_a_minute().await);
        // A new address of waifud, which the daemon itself has stored.
        write("one", "https://192.0.2.8:7373");
        assert!(!within_a_minute().await);
        std::fs::remove_file(dir.path().join("identity.json")).unwrap();
        assert!(!within_a_minute().await);
        write("two", "https://192.0.2.8:7373");
        assert!(within_a_minute().await);
    }

    #[tokio::test]
    async fn a_node_of_another_cluster_joins_only_with_again() {
        let dir = tempfile::tempdir().unwrap();
        let authority = waifud_pki::Authority::generate().unwrap();
        let identity = serde_json::json!({
            "node": "0198c0de-0000-7000-8000-00000000abcd", "name": "birch", "key": "", "certificate": "",
            "ca": authority.to_pem(), "addresses": ["https://192.0.2.9:7373"],
        });
        let file = dir.path().join("identity.json");
        std::fs::write(&file, identity.to_string()).unwrap();
        let config = Config {
            state_dir: dir.path().to_owned(),
            ..Config::default()
        };
        let join_to = async |ca, again| {
            let token = JoinToken {
                ca,
                secret: Secret::new([7; 32]),
                // Nothing listens there.
                addresses: vec!["https://127.0.0.1:1".to_owned()],
            };
            let arguments = JoinArguments {
                token: Some(token.to_text().expose().clone()),
                token_file: None,
                server: Vec::new(),
                name: Some("birch".parse().unwrap()),
                again,
            };
            join(&config, arguments)
                .await
                .map_err(|error| format!("{error:#}"))
        };
        join_to(authority.fingerprint(), false).await.unwrap();
        let other = Digest::from_bytes([1; 32]);
        let refused = join_to(other, false).await.unwrap_err();
        for words in ["node birch of another waifud", "192.0.2.9", "--again"] {
            assert!(refused.contains(words), "{refused}");
        }
        let attempted = join_to(other, true).await.unwrap_err();
        assert!(attempted.contains("127.0.0.1:1"), "{attempted}");
        // A failed attempt keeps the membership.
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            identity.to_string()
        );
    }
}
