//! Starts the parts of the daemon, and stops them on a signal.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use waifud_metadata::{
    ControlSocket, DiskStore, GuestLimits, MetadataService, Parts, RedisBundles, WireguardEnd,
    serve_guests, system_clock,
};
use waifud_redis::Redis;
use waifud_wireguard::{ServerConfig, TunnelServer};

use crate::{config::Config, state};

/// How long running answers may take after a stop signal.
const GRACE: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT.
pub fn run(config: &Config) -> Result<()> {
    // One thread is enough, and the tunnel, the stack and the documents stay in its caches.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")?
        .block_on(serve(config))
}

async fn serve(config: &Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("no signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signals")?;
    let _held = state::lock(&config.state_dir)?;
    let private_key = state::wireguard_key(&config.state_dir)?;
    let public_key = private_key.public_key();
    let store = Arc::new(DiskStore::open(&config.state_dir)?);
    let (server, listener) = TunnelServer::start(ServerConfig {
        listen: config.wireguard_listen,
        ..ServerConfig::new(private_key)
    })?;
    let stop = CancellationToken::new();
    let endpoint = server.local_address();
    let redis = Arc::new(RedisBundles::new(Arc::new(Redis), system_clock));
    let service = MetadataService::start(Parts {
        redis: Arc::clone(&redis),
        bundles: Arc::<DiskStore>::clone(&store),
        state: store,
        tunnel: Arc::new(WireguardEnd::new(server, public_key)),
        tokens: state::token_key(&config.state_dir)?,
        limits: GuestLimits::default(),
        clock: system_clock,
        stop: stop.clone(),
    })
    .await?;
    if let Some(directory) = config.socket.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let socket = ControlSocket::bind(&config.socket)?;
    tracing::info!(%endpoint, %public_key, socket = %config.socket.display(), "ready");
    tokio::spawn({
        let stop = stop.clone();
        async move { redis.run(stop).await }
    });
    let mut guests = tokio::spawn(serve_guests(listener, Arc::clone(&service), stop.clone()));
    let mut agent = tokio::spawn(socket.serve(service, stop.clone()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = ended(&mut guests, &mut agent) => return ended,
    }
    tracing::info!("stopping");
    stop.cancel();
    if timeout(GRACE, async { tokio::join!(guests, agent) })
        .await
        .is_err()
    {
        tracing::info!("aborted requests that were still running");
    }
    Ok(())
}

/// Waits until one side ends unexpectedly. The process then ends with an error, because one side alone is not useful, and
/// is restarted by its supervisor.
async fn ended(
    guests: &mut JoinHandle<()>,
    agent: &mut JoinHandle<std::io::Result<()>>,
) -> Result<()> {
    let side = tokio::select! {
        ended = guests => ended.map(|()| "guest listener").context("the guest listener panicked")?,
        ended = agent => {
            ended.context("the control socket's server panicked")?.context("the control socket's server failed")?;
            "control socket's server"
        }
    };
    anyhow::bail!("the {side} ended unexpectedly")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_service_ends_when_one_side_panics_or_ends() {
        let forever = || tokio::spawn(std::future::pending::<std::io::Result<()>>());
        for (mut guests, word) in [
            (
                tokio::spawn(async { panic!("a panic as part of the test") }),
                "panicked",
            ),
            (tokio::spawn(async {}), "ended unexpectedly"),
        ] {
            let mut agent = forever();
            let outcome = ended(&mut guests, &mut agent);
            let outcome = timeout(Duration::from_secs(30), outcome).await.unwrap();
            assert!(outcome.unwrap_err().to_string().contains(word));
        }
    }
}
