//! `waifud init`: from installed programs to a machine that runs guests, in one command.
//!
//! Writes the configuration where there is none, starts the units where there is systemd, and lets this machine's agent
//! in. Every step may be repeated; nothing that somebody wrote is overwritten.

mod files;
mod systemd;

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use waifud_api::client::{Client, ListQuery};
use waifud_api::join::CreateJoinToken;
use waifud_types::node::NodeState;

use crate::addresses::check_url;
use crate::config::Config;

/// How long a daemon may take to answer after its start, on a slow machine.
const START_MAX: Duration = Duration::from_mins(1);
/// How long the agent may take to join and to report: it looks at libvirt first, and probes KVM.
const JOIN_MAX: Duration = Duration::from_mins(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);
/// How long the join token is good for.
const TOKEN_LIFE_S: u64 = 600;

/// `waifud init`.
#[derive(Args, Debug)]
pub struct InitArguments {
    /// Serve HTTPS here, such as 0.0.0.0:7373, for other machines; repeatable [default: 127.0.0.1:7373]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<SocketAddr>,
    /// The URL by which other machines reach this one, such as <https://alder.lan:7373>; repeatable
    #[arg(long, value_name = "URL")]
    advertise: Vec<String>,
    /// The directory of this node's disks [default: /var/lib/waifud-agent/pools/main]
    #[arg(long, value_name = "PATH")]
    pool: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Sets this machine up.
pub fn init(arguments: &InitArguments) -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "setting a machine up needs root: sudo waifud init"
    );
    for url in &arguments.advertise {
        check_url(url).map_err(|why| anyhow::anyhow!("--advertise {url}: {why}"))?;
    }
    if let Some(pool) = &arguments.pool {
        ensure!(
            pool.is_absolute(),
            "--pool {}: give the whole path, from /",
            pool.display()
        );
    }
    let plan = files::plan(
        &arguments.listen,
        &arguments.advertise,
        arguments.pool.as_deref(),
    )?;
    let systemd = systemd::is_running();
    for line in plan.in_words() {
        eprintln!("{line}");
    }
    if systemd {
        eprintln!("start and enable {}", systemd::UNITS.join(", "));
    }
    confirm(arguments.yes)?;
    plan.write()?;
    if !systemd {
        print!("{}", without_systemd());
        return Ok(());
    }
    systemd::start()?;
    let config = Config::load(None)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(let_in(&config))?;
    print!("{}", next_steps());
    Ok(())
}

fn confirm(yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    ensure!(
        std::io::stdin().is_terminal(),
        "this needs a yes: run it on a terminal, or with --yes"
    );
    eprint!("go on? Type yes: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    ensure!(answer.trim() == "yes", "nothing was changed");
    Ok(())
}

/// Lets this machine's agent in, and waits until the node is ready.
async fn let_in(config: &Config) -> anyhow::Result<()> {
    let client = Client::unix(&config.socket)?;
    eprintln!("waiting for waifud");
    let end = Instant::now() + START_MAX;
    while let Err(error) = client.nodes(&ListQuery::whole()).await {
        if Instant::now() >= end {
            return Err(error).context("waifud does not answer; look at: journalctl -u waifud");
        }
        sleep(LOOK).await;
    }
    eprintln!("letting this machine's agent in");
    let token = client
        .create_join_token(&CreateJoinToken {
            expires_in_s: Some(TOKEN_LIFE_S),
            ..CreateJoinToken::default()
        })
        .await
        .context("no token to join with")?;
    let joined = join(token.token.expose()).await;
    // Spent, or not needed as this machine is a node already.
    let _may_be_spent = client.revoke_join_token(&token.info.id).await;
    joined?;
    eprintln!("waiting for the node to be ready");
    let end = Instant::now() + JOIN_MAX;
    loop {
        let nodes = client.nodes(&ListQuery::whole()).await?;
        if nodes
            .items
            .iter()
            .any(|node| node.state == NodeState::Ready)
        {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("the node is not ready yet; look at: journalctl -u waifud-agentd");
        }
        sleep(LOOK).await;
    }
}

/// The token goes through standard input: a command line is everybody's to read.
async fn join(token: &str) -> anyhow::Result<()> {
    let mut child = Command::new("waifud-agentd")
        .args(["join", "--token-file", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context("waifud-agentd can't be run; is it installed?")?;
    let mut stdin = child
        .stdin
        .take()
        .context("no way to hand the token over")?;
    let talk = async {
        // An agent that is in already does not read it.
        let _not_wanted = stdin.write_all(token.as_bytes()).await;
        drop(stdin);
        child.wait().await
    };
    let status = tokio::time::timeout(JOIN_MAX, talk)
        .await
        .context("waifud-agentd join takes too long")??;
    ensure!(status.success(), "waifud-agentd could not join");
    Ok(())
}

fn without_systemd() -> String {
    "There is no systemd here: start these yourself, in this order, as these users:\n\
     \x20 libvirtd (root), waifud (waifud), waifud-metadatad (waifud-metadata), waifud-agentd (root)\n\
     Then let this machine in:\n\
     \x20 waifuctl node token create | waifud-agentd join --token-file -\n"
        .to_owned()
}

fn next_steps() -> String {
    let mut text = String::from("This machine runs guests. Next:\n");
    let user = std::env::var("SUDO_USER").ok().filter(|user| {
        user != "root"
            && user
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    });
    if let Some(user) = user {
        text.push_str("  sudo usermod -aG waifud-admin ");
        text.push_str(&user);
        text.push_str("     # then log in again: waifuctl without sudo\n");
    }
    text.push_str("  waifuctl template add debian-12\n  waifuctl create web -t debian-12 --wait\n");
    text
}
