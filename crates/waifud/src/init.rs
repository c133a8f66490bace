//! `waifud init`: sets up a machine that runs guests, in one command.
//!
//! Writes the configuration files that do not exist, starts the units if systemd is running, and joins this machine's
//! agent. Every step can be repeated; existing files are never overwritten.

mod files;
mod systemd;

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
use waifud_pki::Authority;
use waifud_types::node::NodeState;

use crate::addresses::check_url;
use crate::config::Config;
use crate::confirm;

/// The time limit for waifud's first answer after its start, on a slow machine.
const START_MAX: Duration = Duration::from_mins(1);
/// The time limit for the agent to join, and then to report: it inspects libvirt and probes KVM first.
const JOIN_MAX: Duration = Duration::from_mins(2);
/// The polling interval.
const LOOK: Duration = Duration::from_millis(300);
/// The lifetime of the join token, in seconds.
const TOKEN_LIFE_S: u64 = 600;

/// The arguments of `waifud init`.
#[derive(Args, Debug)]
pub struct InitArguments {
    /// An address for HTTPS, for example 0.0.0.0:7373 for other machines; repeatable [default: 127.0.0.1:7373]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<SocketAddr>,
    /// A URL at which other machines reach waifud, for example <https://alder.lan:7373>; repeatable
    #[arg(long, value_name = "URL")]
    advertise: Vec<String>,
    /// The directory for the disks on this node [default: /var/lib/waifud-agent/pools/main]
    #[arg(long, value_name = "PATH")]
    pool: Option<PathBuf>,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

/// Sets this machine up.
pub fn init(arguments: &InitArguments) -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "setting up a machine requires root; run: sudo waifud init"
    );
    for url in &arguments.advertise {
        check_url(url).map_err(|why| anyhow::anyhow!("--advertise {url}: {why}"))?;
    }
    if let Some(pool) = &arguments.pool {
        ensure!(
            pool.is_absolute(),
            "--pool {}: use an absolute path",
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
    confirm::ask("Continue?", arguments.yes)?;
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
    let ca = std::fs::read_to_string(Authority::public_file(&config.state_dir.join("pki")));
    print!("{}{}", next_steps(), for_login(ca.ok().as_deref()));
    Ok(())
}

/// Joins this machine's agent, and waits until the node is ready.
async fn let_in(config: &Config) -> anyhow::Result<()> {
    let client = Client::unix(&config.socket)?;
    eprintln!("waiting for waifud");
    let end = Instant::now() + START_MAX;
    while let Err(error) = client.nodes(&ListQuery::all()).await {
        if Instant::now() >= end {
            return Err(error)
                .context("waifud does not answer; check its log: journalctl -u waifud");
        }
        sleep(LOOK).await;
    }
    eprintln!("joining this machine's agent");
    let token = client
        .create_join_token(&CreateJoinToken {
            expires_in_s: Some(TOKEN_LIFE_S),
            ..CreateJoinToken::default()
        })
        .await
        .context("cannot create a join token")?;
    let joined = join(token.token.expose()).await;
    // Already used, or not needed because this machine is a node.
    let _may_be_spent = client.revoke_join_token(&token.info.id).await;
    joined?;
    eprintln!("waiting for the node to be ready");
    let end = Instant::now() + JOIN_MAX;
    loop {
        let nodes = client.nodes(&ListQuery::all()).await?;
        if nodes
            .items
            .iter()
            .any(|node| node.state == NodeState::Ready)
        {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("the node is not ready yet; check its log: journalctl -u waifud-agentd");
        }
        sleep(LOOK).await;
    }
}

/// Passes the token through standard input, because other users can read command lines.
async fn join(token: &str) -> anyhow::Result<()> {
    let mut child = Command::new("waifud-agentd")
        .args(["join", "--token-file", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run waifud-agentd; is it installed?")?;
    let mut stdin = child
        .stdin
        .take()
        .context("cannot pass the token to waifud-agentd")?;
    let talk = async {
        // An agent that has already joined does not read it.
        let _not_wanted = stdin.write_all(token.as_bytes()).await;
        drop(stdin);
        child.wait().await
    };
    let status = tokio::time::timeout(JOIN_MAX, talk)
        .await
        .context("waifud-agentd join timed out")??;
    ensure!(status.success(), "waifud-agentd could not join");
    Ok(())
}

fn without_systemd() -> String {
    "systemd is not running. Start these programs yourself, in this order and as these users:\n\
     \x20 libvirtd (root), waifud (waifud), waifud-metadatad (waifud-metadata), waifud-agentd (root)\n\
     Then join this machine:\n\
     \x20 waifuctl node token create | waifud-agentd join --token-file -\n"
        .to_owned()
}

fn next_steps() -> String {
    let mut text = String::from("This machine is ready to run instances. Next steps:\n");
    let user = std::env::var("SUDO_USER").ok().filter(|user| {
        user != "root"
            && user
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    });
    if let Some(user) = user {
        text.push_str("  sudo usermod -aG waifud-admin ");
        text.push_str(&user);
        text.push_str("     # then log in again to use waifuctl without sudo\n");
    }
    text.push_str("  waifuctl template add debian-12\n  waifuctl create web -t debian-12 --wait\n");
    text
}

/// The fingerprint that `waifuctl login` asks to compare; nothing if the certificate cannot be read.
fn for_login(ca: Option<&str>) -> String {
    let certificates = ca.and_then(|text| waifud_pki::certificates(text).ok());
    let Some(certificate) = certificates.iter().flatten().next() else {
        return String::new();
    };
    let fingerprint = waifud_pki::as_openssl_prints(waifud_pki::fingerprint(certificate));
    format!(
        "waifuctl login on another machine asks you to compare the fingerprint of waifud's CA:\n  {fingerprint}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_of_the_ca_is_shown_for_a_login() {
        let authority = Authority::generate().unwrap();
        let shown = waifud_pki::as_openssl_prints(authority.fingerprint());
        assert!(for_login(Some(&authority.to_pem())).contains(&shown));
        assert_eq!(for_login(None), "");
    }
}
