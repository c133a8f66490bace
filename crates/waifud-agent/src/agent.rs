//! The agent: opens the durable copy, starts the tasks, and restarts a task that panicked.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use waifud_api::agent::InstanceReport;
use waifud_types::node::NodeFacts;
use waifud_types::{Incarnation, InstanceId};

use crate::control_link::durable::DurableError;
use crate::control_link::reports::Reports;
use crate::control_link::table::Table;
use crate::control_link::{reporter, watch as control_watch};
use crate::guest::diagnostics;
use crate::guest::diagnostics_requests::DiagnosticsRequests;
use crate::guest::metadata::Metadata;
use crate::guest::report_port;
use crate::images::Images;
use crate::images::collection::{self, ImageCollector};
use crate::instance::driver::Driver;
use crate::instance::files::Files;
use crate::instance::parts::InstanceParts;
use crate::instance::signals::{Signal, Signals};
use crate::network::Network;
use crate::node::checks::NodeChecks;
use crate::node::{background_tasks, facts, sweep};
use crate::peer_port::avoided::Avoided;
use crate::peer_port::images::PeerImages;
use crate::peer_port::tickets::Tickets;
use crate::peer_port::{PortStatus, server};
use crate::settings::{BootAlone, Settings};
use crate::shared::{Adapters, Pools, Shared};
use crate::streams::requests::StreamRequests;
use crate::streams::{self, Consoles, StreamServer};

/// The pause before a failed background task is restarted.
const PAUSE: Duration = Duration::from_secs(1);

/// Why an agent could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The durable copy cannot be used.
    #[error("cannot use the node's durable copy")]
    Durable(#[from] DurableError),
}

/// The agent of one node. See the crate's documentation.
pub struct Agent {
    shared: Arc<Shared>,
    streams: Arc<StreamServer>,
    images: Arc<ImageCollector>,
    spawn: mpsc::UnboundedReceiver<(InstanceId, Arc<Signal>)>,
}

/// The purpose of a task, so that it can be restarted.
#[derive(Clone)]
enum Purpose {
    Driver(InstanceId),
}

impl Agent {
    /// Opens the durable copy. Contacts and changes nothing yet.
    pub fn open(settings: Settings, adapters: Adapters) -> Result<Self, AgentError> {
        let (table, damaged) = Table::open(settings.state_dir.join("records"))?;
        for file in damaged {
            tracing::error!("moved aside a record that cannot be parsed: {file}");
        }
        let files = Files::new(
            settings.state_dir.clone(),
            settings.run_dir.clone(),
            settings.qemu_owner,
        );
        if let Err(error) = files.secure_directories() {
            tracing::error!(%error, "cannot change the owner of a guest's directory to root; retrying before the guest's next start");
        }
        let (signals, spawn) = Signals::new();
        let (stream_requests, inbox) = StreamRequests::new();
        let table = Arc::new(table);
        let reports = Arc::new(Reports::default());
        let pools: Arc<Pools> = Arc::new(
            adapters
                .pools
                .into_iter()
                .map(|pool| (pool.name().clone(), pool))
                .collect(),
        );
        let streams = Arc::new(StreamServer {
            inbox,
            consoles: Consoles::default(),
            link: adapters.link.clone(),
            hypervisor: adapters.hypervisor.clone(),
            dialer: adapters.dialer,
            table: table.clone(),
            reports: reports.clone(),
            files: files.clone(),
            pools: pools.clone(),
            bridge: settings.bridge.clone(),
        });
        let images = Arc::new(ImageCollector {
            table: table.clone(),
            pools: pools.clone(),
            period: settings.timing.sweep,
            grace: settings.timing.image_grace,
        });
        // The disk may have been copied: only waifud knows whether the node runs elsewhere.
        let known = table.node().hardware;
        let is_moved = known
            .zip(adapters.host.hardware())
            .is_some_and(|(known, now)| known != now);
        let node_checks = Arc::new(NodeChecks::default());
        let shared = Arc::new(Shared {
            network: Network::new(adapters.network.clone(), adapters.fabric, settings.clone()),
            metadata: Metadata::new(
                adapters.metadata,
                adapters.tunnel,
                adapters.link.clone(),
                adapters.clock.clone(),
                settings.state_dir.join("bundles"),
            ),
            diagnostics: DiagnosticsRequests::default(),
            instances: InstanceParts::new(
                adapters.hypervisor.clone(),
                files,
                Images::new(
                    adapters.link.clone(),
                    PeerImages::new(adapters.link.clone(), adapters.peers.clone()),
                    node_checks.clone(),
                ),
                settings.boot_alone == BootAlone::Start && !is_moved,
                &table.records(),
            ),
            reports,
            stream_requests,
            pools,
            node_checks,
            settings,
            hypervisor: adapters.hypervisor,
            guest_network: adapters.network,
            link: adapters.link,
            peers: adapters.peers,
            port: PortStatus::default(),
            tickets: Tickets::default(),
            avoided_paths: Avoided::default(),
            clock: adapters.clock,
            host: adapters.host,
            table,
            signals,
        });
        if is_moved {
            tracing::warn!(
                "this machine has other hardware than the one that waifud accepted last: no guest is started before waifud accepts it"
            );
            shared.instances.refuse_starts();
        }
        Ok(Self {
            shared,
            streams,
            images,
            spawn,
        })
    }

    /// An administrator confirms waifud's restored database. Returns whether deletions were held for it.
    pub fn confirm_incarnation(&self, incarnation: Incarnation) -> Result<bool, AgentError> {
        Ok(self.shared.table.confirm(incarnation)?)
    }

    /// Access to the agent's state while it runs.
    pub fn view(&self) -> AgentView {
        AgentView(self.shared.clone())
    }

    /// Runs until `stop`. Dropping the future also stops the agent, and nothing else.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            shared,
            streams,
            images,
            mut spawn,
        } = self;
        let mut tasks = JoinSet::new();
        let mut purposes: HashMap<Id, Purpose> = HashMap::new();
        // Tasks subscribe to events here, before the first observation, so that no event is missed.
        for task in background_tasks(&shared, &streams, &images) {
            tasks.spawn(async move {
                task.await;
                None
            });
        }
        // Higher priorities first, so that their drivers are polled first.
        let mut records = shared.table.records();
        let priority = |record: &crate::control_link::record::InstanceRecord| {
            record.instance.as_ref().map_or(0, |i| i.spec.priority)
        };
        records.sort_by_key(|record| (std::cmp::Reverse(priority(record)), record.id));
        for record in records {
            shared.signals.wake(record.id);
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some((id, signal)) = spawn.recv() => {
                    let driver = Driver::new(shared.clone(), id, signal);
                    let handle = tasks.spawn(async move { Some(Box::pin(driver.run()).await) });
                    purposes.insert(handle.id(), Purpose::Driver(id));
                }
                Some(ended) = tasks.join_next_with_id() => {
                    let (task, panicked) = match ended {
                        Ok((task, _)) => (task, false),
                        Err(error) => (error.id(), error.is_panic()),
                    };
                    match purposes.remove(&task) {
                        Some(Purpose::Driver(id)) => {
                            if panicked {
                                tracing::error!(instance = %id, "the instance's driver panicked, which is a bug; restarting it");
                            }
                            shared.signals.ended(id);
                            // A record may have been added while the driver was ending.
                            if shared.table.version(id).is_some() {
                                shared.signals.wake(id);
                            }
                        }
                        // Background tasks never end.
                        None => {}
                    }
                }
            }
        }
        tasks.shutdown().await;
        report_port::accept_at_stop(&shared).await;
    }
}

/// The tasks that belong to no single instance.
fn background_tasks(
    shared: &Arc<Shared>,
    streams: &Arc<StreamServer>,
    images: &Arc<ImageCollector>,
) -> [BoxFuture<'static, ()>; 15] {
    fn task<T: Send + Sync + 'static>(
        name: &'static str,
        context: &Arc<T>,
        run: fn(Arc<T>) -> BoxFuture<'static, ()>,
    ) -> BoxFuture<'static, ()> {
        let context = context.clone();
        restarting(name, move || run(context.clone())).boxed()
    }
    [
        task("control", shared, |s| control_watch::run(s).boxed()),
        task("reporter", shared, |s| reporter::run(s).boxed()),
        task("facts", shared, |s| facts::run(s).boxed()),
        task("sweep", shared, |s| sweep::run(s).boxed()),
        task("image collection", images, |c| collection::run(c).boxed()),
        task("events", shared, |s| {
            let events = s.hypervisor.events();
            background_tasks::events(s, events).boxed()
        }),
        task("network", shared, |s| {
            let drift = s.guest_network.drift();
            background_tasks::network(s, drift).boxed()
        }),
        task("fabric", shared, |s| background_tasks::fabric(s).boxed()),
        task("metadata", shared, |s| {
            background_tasks::metadata(s).boxed()
        }),
        task("report port", shared, |s| report_port::run(s).boxed()),
        task("observations", shared, |s| {
            background_tasks::observations(s).boxed()
        }),
        task("guest diagnostics", shared, |s| diagnostics::run(s).boxed()),
        task("peer port", shared, |s| server::run(s).boxed()),
        task("streams", streams, |s| streams::run(s).boxed()),
        task("boot", shared, |s| background_tasks::boot_alone(s).boxed()),
    ]
}

/// A task that is restarted when it panics: an agent without one of its background tasks would seem to work and ignore
/// events. The first one is created at once, before the future is polled.
fn restarting<W: Future<Output = ()> + Send + 'static>(
    name: &'static str,
    make: impl Fn() -> W + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let mut work = make();
    async move {
        loop {
            // Shared state is changed at once, behind locks that survive a panic.
            let panicked = AssertUnwindSafe(work).catch_unwind().await.is_err();
            tracing::error!(
                task = name,
                panicked,
                "a background task of the agent ended, which is a bug; restarting it"
            );
            tokio::time::sleep(PAUSE).await;
            work = make();
        }
    }
}

/// Reads the state of a running agent.
#[derive(Clone)]
pub struct AgentView(Arc<Shared>);

impl AgentView {
    /// The last status of an instance, reported or to be reported.
    pub fn instance(&self, id: InstanceId) -> Option<InstanceReport> {
        self.0.reports.last_instance(id)
    }

    /// The node's facts, if gathered.
    pub fn facts(&self) -> Option<NodeFacts> {
        self.0.reports.last_facts()
    }

    /// Instances with a record.
    pub fn instances(&self) -> Vec<InstanceId> {
        self.0
            .table
            .records()
            .iter()
            .map(|record| record.id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panicked_task_is_restarted() {
        let (begun, mut begins) = mpsc::unbounded_channel();
        let task = tokio::spawn(restarting("test", move || {
            begun.send(()).unwrap();
            async { panic!("this one is part of the test") }
        }));
        for _ in 0..2 {
            let started = tokio::time::timeout(Duration::from_secs(30), begins.recv());
            assert_eq!(started.await.unwrap(), Some(()));
        }
        task.abort();
    }
}
