//! Watches this node's objects in waifud, and reconnects whenever the watch ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use waifud_api::agent::{Hello, WatchFrame, WatchStart};
use waifud_types::{Incarnation, InstanceId};

use crate::backoff::Backoff;
use crate::control_link::durable::DurableError;
use crate::control_link::outcome::{Affected, Welcomed};
use crate::failpoints;
use crate::interfaces::LinkError;
use crate::shared::Shared;

/// How long to wait for the node's first facts before connecting to waifud without them.
const FIRST_FACTS: Duration = Duration::from_secs(20);

/// How long changes of peers and names are collected before they are saved together.
const COLLECT_PEERS: Duration = Duration::from_millis(100);

/// Runs until the agent stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(
        timing.retry_min,
        timing.retry_max.min(Duration::from_secs(5)),
    );
    // A failure to write ends a connection that works otherwise, so its pauses grow separately.
    let mut unwritable = backoff.clone();
    let mut logged: Option<String> = None;
    loop {
        let ended = listen(&shared, &mut backoff).await;
        shared.reports.set_connected(false);
        let (pause, ended) = match ended {
            Ended::Link(why) => {
                unwritable.reset();
                (backoff.pause(), format!("no connection to waifud: {why}"))
            }
            Ended::Disk(error) => (
                unwritable.pause(),
                format!(
                    "cannot store what waifud sent: {}",
                    waifud_kit::error::with_causes(&error)
                ),
            ),
        };
        if logged.as_ref() != Some(&ended) {
            tracing::warn!("{ended}; retrying (guests are not affected)");
            logged = Some(ended);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Why a connection ended.
enum Ended {
    /// waifud or the connection to it failed.
    Link(String),
    /// The node could not write to its disk.
    Disk(DurableError),
}

impl Ended {
    fn link(why: impl std::fmt::Display) -> Self {
        Self::Link(why.to_string())
    }
}

/// Runs one connection. Returns why it ended.
async fn listen(shared: &Arc<Shared>, backoff: &mut Backoff) -> Ended {
    let facts = if let Some(facts) = shared.reports.last_facts() {
        facts
    } else {
        match timeout(FIRST_FACTS, crate::node::facts::gather(shared)).await {
            Ok(facts) => facts,
            Err(_) => crate::node::facts::unfinished(shared).await,
        }
    };
    let mut hello = Hello {
        name: shared.settings.node.clone(),
        facts,
        now: shared.now(),
        boot_id: shared.host.boot_id(),
        incarnation: shared.table.node().incarnation,
        order: Some(shared.reports.order.next()),
        hardware: shared.host.hardware(),
    };
    hello.fit();
    shared.reports.set_boot(hello.boot_id);
    let welcome = match failpoints::HELLO.around(shared.link.hello(&hello)).await {
        Ok(welcome) => welcome,
        Err(error) => {
            shared.reports.order.failed(&error);
            if matches!(error, LinkError::Duplicate { .. }) {
                shared.instances.refuse_starts();
            }
            return Ended::link(error);
        }
    };
    match shared.table.welcome(&welcome, hello.hardware) {
        Ok(Welcomed::Unchanged) => {}
        Ok(Welcomed::OtherNode) => {
            tracing::warn!(node = %welcome.node, "this machine is another node now; what it already had is unmanaged");
            // The list compares with the former slice.
            shared.reports.forget_unmanaged();
        }
        Ok(Welcomed::OtherIncarnation) => {
            tracing::error!(incarnation = %welcome.incarnation, "waifud's database has changed: nothing is destroyed until an administrator confirms it");
            shared.node_checks.request_facts();
            // The list compares with the former slice.
            shared.reports.forget_unmanaged();
        }
        Err(error) => return Ended::Disk(error),
    }
    shared.reports.set_connected(true);
    shared.reports.resend_all();
    if hello.facts.peer_port.is_none() {
        // The connection has shown the node's address, which other nodes need.
        shared.node_checks.request_facts();
    }
    let start = WatchStart {
        since: shared.table.begin_watch(),
        names: shared.table.names_revision(),
    };
    let mut frames = match shared.link.watch(start).await {
        Ok(frames) => frames,
        Err(LinkError::Gone) => {
            if let Err(error) = shared.table.forget_revision() {
                return Ended::Disk(error);
            }
            return Ended::link(
                "waifud has trimmed its history; requesting all objects of this node again",
            );
        }
        Err(error) => return Ended::link(error),
    };
    tracing::info!(node = %welcome.node, "connected to waifud");
    let mut save_peers_at = None;
    loop {
        let frame = tokio::select! {
            frame = frames.next() => frame,
            () = sleep_until(save_peers_at.unwrap_or_else(Instant::now)), if save_peers_at.is_some() => {
                save_peers_at = None;
                match shared.table.save_peers() {
                    Ok(()) => notify_of_peers(shared),
                    Err(error) => return Ended::Disk(error),
                }
                continue;
            }
        };
        let mut frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ended::link("waifud closed the watch"),
            Err(error) => return Ended::link(error),
        };
        if is_of_another_database(&mut frame, welcome.incarnation) {
            return Ended::link("its database was restored in the meantime");
        }
        backoff.reset();
        match frame {
            WatchFrame::Stream(order) => {
                shared.stream_requests.add(order);
                continue;
            }
            WatchFrame::ImageTicket(order) => {
                shared.tickets.add(order);
                continue;
            }
            WatchFrame::Ticket(order) => {
                shared.tickets.add(order);
                continue;
            }
            _ => {}
        }
        let leaves = matches!(frame, WatchFrame::Delete { .. });
        match shared.table.apply(frame) {
            Ok(affected) => {
                if leaves {
                    // An instance may be unmanaged now.
                    shared.node_checks.request_sweep();
                }
                notify(shared, affected);
                notify_of_peers(shared);
                if !shared.table.has_unsaved_peers() {
                    save_peers_at = None;
                } else if save_peers_at.is_none() {
                    save_peers_at = Some(Instant::now() + COLLECT_PEERS);
                }
            }
            // A frame that is not durable is not acted on. The next watch sends it again.
            Err(error) => return Ended::Disk(error),
        }
    }
}

/// Whether the frame is from another incarnation of waifud's database than the one that has answered the hello: waifud was restored
/// before the watch began. What was reported since went to the former one, and deletions have to be held for the new one.
fn is_of_another_database(frame: &mut WatchFrame, known: Incarnation) -> bool {
    let revision = frame.revision_mut();
    revision.is_some_and(|revision| revision.incarnation != known)
}

/// The network depends on the peers and their names.
fn notify_of_peers(shared: &Shared) {
    if shared.table.take_changed_peers() {
        shared.network.fabric().request_check();
        shared.network.request_check();
    }
    if shared.table.take_changed_names() {
        shared.network.request_check();
    }
}

fn notify(shared: &Shared, affected: Affected) {
    let wake = |ids: Vec<InstanceId>| ids.into_iter().for_each(|id| shared.signals.wake(id));
    match affected {
        Affected::None => {}
        Affected::Instances(ids) => wake(ids),
        Affected::All => {
            // A confirmation ends a condition, which is reported at once.
            shared.node_checks.request_facts();
            shared.network.fabric().request_check();
            shared.network.request_check();
            shared.metadata.request_check();
            wake(shared.table.records().iter().map(|r| r.id).collect());
        }
        Affected::Synced => {
            shared.instances.grant_starts();
            // A confirmation may count from now on, which ends a condition.
            shared.node_checks.request_facts();
            shared.node_checks.request_sweep();
            // An agent that was killed while removing an instance may have left bundles behind.
            shared.metadata.remove_unused_bundles(&shared.table);
            wake(shared.table.records().iter().map(|r| r.id).collect());
        }
    }
}
