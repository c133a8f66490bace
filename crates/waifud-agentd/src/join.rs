//! `waifud-agentd join`, and how the daemon waits for it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use waifud_agent::Membership;
use waifud_api::join::JoinToken;

use crate::config::Config;
use crate::host;

/// A token's text has a few hundred bytes.
const TOKEN_MAX: u64 = 8192;
/// How often the daemon looks whether its machine has joined.
const LOOK: Duration = Duration::from_millis(500);

/// `join`.
#[derive(Debug, Args)]
pub struct JoinArguments {
    /// The token, as `waifuctl node token create` printed it. Other users may see a command line: prefer --token-file.
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the token; - reads it from standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where waifud is, instead of where the token says; repeatable.
    #[arg(long, value_name = "URL")]
    server: Vec<String>,
    /// Join though this machine is a node already: it gets a new key, and maybe another waifud.
    #[arg(long)]
    again: bool,
}

/// Makes this machine a node.
pub async fn join(config: &Config, arguments: JoinArguments) -> anyhow::Result<()> {
    let text = read_token(&arguments)?;
    let token = JoinToken::parse(&text)?;
    host::passable(&config.state_dir)?;
    if let Some(member) = Membership::open(&config.state_dir)?
        && !arguments.again
    {
        println!(
            "this machine is node {} already; nothing was done (--again joins anew)",
            member.name()
        );
        return Ok(());
    }
    let name = config.node_name()?;
    let member = Membership::join(&config.state_dir, &token, &arguments.server, name).await?;
    println!("joined as {}", member.name());
    if arguments.again {
        println!("restart waifud-agentd, so that it uses its new key");
    }
    Ok(())
}

fn read_token(arguments: &JoinArguments) -> anyhow::Result<String> {
    let from = match (&arguments.token, &arguments.token_file) {
        (Some(token), _) => return Ok(token.clone()),
        (None, Some(file)) => file,
        (None, None) => bail!("a token is needed: --token TOKEN, or --token-file FILE"),
    };
    let mut text = String::new();
    let read = if from == Path::new("-") {
        std::io::stdin().take(TOKEN_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(from).and_then(|file| file.take(TOKEN_MAX).read_to_string(&mut text))
    };
    read.with_context(|| format!("the token can't be read from {}", from.display()))?;
    Ok(text)
}

/// Waits until this machine is a node, and says so while it is none.
pub async fn wait(config: &Config) -> anyhow::Result<Membership> {
    let mut told = false;
    loop {
        if let Some(member) = Membership::open(&config.state_dir)? {
            tracing::info!(node = %member.node(), addresses = ?member.addresses(), "this machine is a node");
            return Ok(member);
        }
        if !told {
            tracing::warn!(
                "this machine has not joined: run `waifuctl node token create` where waifud is, and here \
                 `waifud-agentd join --token TOKEN`; waiting for that"
            );
            told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
}
