//! Runs the server: lock, database, sockets, and an orderly shutdown.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use waifud_control::env::{Entropy, SystemClock, SystemEntropy};
use waifud_control::{Control, ControlConfig, ControlError, DownloadConfig, Peer, http};
use waifud_kit::filesystem;
use waifud_pki::server_config;
use waifud_store::{Mode, Store};
use waifud_types::Incarnation;

use crate::backup::{DATABASE, IMAGES, PKI};
use crate::config::Config;
use crate::connections::Connections;
use crate::sockets::listen;
use crate::{addresses, https};

/// The time limit for running requests during a shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    // First, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state_dir)
        .with_context(|| format!("cannot create {}", config.state_dir.display()))?;
    let _lock = lock(&config.state_dir)?;
    crate::backup::refuse_half_restored(&config.state_dir)?;
    crate::backup::remove_unpacked(&config.state_dir)?;
    refuse_lost_database(&config.state_dir)?;
    let listeners = https::bind(&config.listen).await?;
    let mut bound = Vec::new();
    for listener in &listeners {
        bound.push(listener.local_addr()?);
    }
    let own = addresses::own();
    let control = open(&config, addresses::urls(&config.advertise, &bound, &own)).await?;
    let users = listen(&config.socket, 0o660, &config.socket_group)?;
    let (authority, pki) = (control.authority(), control.pki_dir());
    let host_name = nix::unistd::gethostname().ok();
    let names = addresses::names(
        &config.advertise,
        &bound,
        &own,
        host_name.as_ref().and_then(|name| name.to_str()),
    );
    let tls = server_config(
        authority.certificate(),
        &authority.open_server(&pki, &names)?,
    )?;
    tracing::info!(
        listen = ?bound,
        ca = %authority.fingerprint(),
        socket = %config.socket.display(),
        incarnation = %control.store().incarnation(),
        "waifud {} is ready",
        env!("CARGO_PKG_VERSION")
    );

    let stop = control.stop_token().clone();
    let monitor = tokio::spawn({
        let control = control.clone();
        async move { control.run_background_tasks().await }
    });
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(run(users, http::user_router(control.clone()), stop.clone()));
    let connections = Connections::default();
    for listener in listeners {
        let router = http::tls_router(control.clone());
        let serve = https::serve(
            listener,
            tls.clone(),
            router,
            stop.clone(),
            connections.clone(),
        );
        servers.spawn(serve);
    }
    tokio::select! {
        _ = terminate.recv() => tracing::info!("received SIGTERM, stopping"),
        _ = interrupt.recv() => tracing::info!("received SIGINT, stopping"),
        ended = servers.join_next() => tracing::error!(?ended, "a server ended unexpectedly"),
    }
    // This ends watches and waits; other requests have until the time limit.
    stop.cancel();
    if tokio::time::timeout(GRACE, async {
        while servers.join_next().await.is_some() {}
    })
    .await
    .is_err()
    {
        tracing::warn!("stopped while some requests were still running");
        servers.abort_all();
    }
    monitor.await??;
    let _may_be_gone = std::fs::remove_file(&config.socket);
    tracing::info!("stopped");
    Ok(())
}

async fn open(config: &Config, addresses: Vec<String>) -> anyhow::Result<Control> {
    let entropy = SystemEntropy;
    let mut fresh = [0; 4];
    entropy.fill(&mut fresh);
    let readers = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
    let store = Store::open(
        &config.state_dir.join(DATABASE),
        Mode::Threads { readers },
        Incarnation(u32::from_le_bytes(fresh)),
    )?;
    let settings = ControlConfig {
        guest_range: config.guest_range,
        addresses,
        installation: config.installation.clone(),
        unreachable_after: config.unreachable_after,
        redis: config.redis.open()?,
        downloads: DownloadConfig {
            mirror: config.catalog_mirror.clone(),
            loopback: config.downloads_from_loopback,
            ..DownloadConfig::default()
        },
        ..ControlConfig::new(config.state_dir.clone())
    };
    let control = Control::new(store, settings, Arc::new(SystemClock), Arc::new(entropy)).await?;
    unless_full(control.resume_downloads().await)?;
    unless_full(control.announce_redis().await)?;
    // Without a boot id from the kernel, this step is skipped.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    if let Some(boot) = boot.ok().and_then(|text| text.trim().parse().ok()) {
        unless_full(control.note_boot(boot).await)?;
    }
    Ok(control)
}

/// Fails if the database was lost: a new one would contain no instances, nodes and tokens, and existing images would be
/// removed as unknown.
fn refuse_lost_database(state_dir: &Path) -> anyhow::Result<()> {
    let database = state_dir.join(DATABASE);
    if database.try_exists().unwrap_or(true) {
        return Ok(());
    }
    for left in [PKI, IMAGES] {
        let left = state_dir.join(left);
        let used = std::fs::read_dir(&left).is_ok_and(|mut entries| entries.next().is_some());
        anyhow::ensure!(
            !used,
            "the database {} is missing, but {} belongs to an earlier database. Restore a backup: waifud restore FILE. To \
             start with an empty database, without the instances, nodes and tokens, move {} elsewhere first",
            database.display(),
            left.display(),
            left.display()
        );
    }
    Ok(())
}

/// Ignores errors about a full disk, so that waifud starts and users can list and delete. The next reports from nodes
/// contain the current state.
fn unless_full(outcome: Result<(), ControlError>) -> Result<(), ControlError> {
    match outcome {
        Err(error) if error.is_disk_full() => {
            tracing::warn!(
                "state_dir is full; changes that waifud makes while it starts are not recorded"
            );
            Ok(())
        }
        other => other,
    }
}

/// Ensures that only one waifud uses a state directory. The lock ends with the process.
pub fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    let lock =
        filesystem::lock(&path).with_context(|| format!("cannot lock {}", path.display()))?;
    lock.with_context(|| {
        format!(
            "another waifud uses {}; stop it first, or use another state_dir",
            state_dir.display()
        )
    })
}

async fn run(
    listener: UnixListener,
    router: axum::Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(
        listener,
        router.into_make_service_with_connect_info::<Peer>(),
    )
    .with_graceful_shutdown(stop.cancelled_owned())
    .await
}
