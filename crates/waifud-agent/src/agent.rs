//! The agent as a whole: opens the durable copy, starts the tasks, and replaces a task that broke.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc, watch};
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
use crate::guest::metadata::Metadata;
use crate::images::Images;
use crate::images::collection;
use crate::instance::boot_order::BootOrder;
use crate::instance::driver::Driver;
use crate::instance::files::Files;
use crate::instance::signals::{Signal, Signals};
use crate::network::Network;
use crate::node::{background_tasks, facts, sweep};
use crate::settings::{BootAlone, Settings};
use crate::shared::{Adapters, Shared};
use crate::streams::{self, Streams};

/// Before a keeper that broke is begun anew.
const PAUSE: Duration = Duration::from_secs(1);

/// An agent could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The durable copy can't be used.
    #[error("the node's durable copy can't be used")]
    Durable(#[from] DurableError),
}

/// The agent of one node. See the crate's text.
pub struct Agent {
    shared: Arc<Shared>,
    spawn: mpsc::UnboundedReceiver<(InstanceId, Arc<Signal>)>,
}

/// What a task was for, so that it can be begun again.
#[derive(Clone)]
enum Purpose {
    Driver(InstanceId),
}

impl Agent {
    /// Opens the durable copy. Nothing is contacted or changed yet.
    pub fn open(settings: Settings, adapters: Adapters) -> Result<Self, AgentError> {
        let (table, damaged) = Table::open(settings.state_dir.join("records"))?;
        for file in damaged {
            tracing::error!("a record can't be understood and was set aside: {file}");
        }
        let files = Files::new(
            settings.state_dir.clone(),
            settings.run_dir.clone(),
            settings.qemu_owner,
        );
        if let Err(error) = files.take_over() {
            tracing::error!(%error, "a directory of a guest can't be made root's; it is tried again before its next start");
        }
        let (signals, spawn) = Signals::new();
        let known = table.node().slice.is_some();
        let shared = Arc::new(Shared {
            network: Network::new(adapters.network.clone(), settings.clone()),
            metadata: Metadata::new(
                adapters.metadata,
                adapters.tunnel,
                adapters.link.clone(),
                settings.state_dir.join("bundles"),
            ),
            images: Images::new(adapters.link.clone()),
            files,
            reports: Reports::default(),
            streams: Streams::default(),
            dialer: adapters.dialer,
            pools: adapters
                .pools
                .into_iter()
                .map(|pool| (pool.name().clone(), pool))
                .collect::<BTreeMap<_, _>>(),
            start_allowed: watch::Sender::new(settings.boot_alone == BootAlone::Start),
            welcomed: watch::Sender::new(false),
            kind: watch::Sender::new(None),
            sweep: Notify::new(),
            network_check: Notify::new(),
            metadata_check: Notify::new(),
            facts_check: Notify::new(),
            evidence_check: Notify::new(),
            slice_known: AtomicBool::new(known),
            settings,
            hypervisor: adapters.hypervisor,
            guest_network: adapters.network,
            link: adapters.link,
            clock: adapters.clock,
            host: adapters.host,
            boot_order: BootOrder::new(table.records().iter().filter_map(first_turn)),
            table,
            signals,
        });
        Ok(Self { shared, spawn })
    }

    /// An operator's word that waifud's restored database is the right one. Says whether destruction was held for it.
    pub fn confirm_incarnation(&self, incarnation: Incarnation) -> Result<bool, AgentError> {
        Ok(self.shared.table.confirm(incarnation)?)
    }

    /// What can be asked while the agent runs.
    pub fn view(&self) -> AgentView {
        AgentView(self.shared.clone())
    }

    /// Runs until `stop`. Dropping the future, too, stops the agent and nothing else.
    pub async fn run(self, stop: CancellationToken) {
        let Self { shared, mut spawn } = self;
        let mut tasks = JoinSet::new();
        let mut purposes: HashMap<Id, Purpose> = HashMap::new();
        // Those that listen subscribe here, before anything is looked at: what happens in between is not missed.
        for task in background_tasks(&shared) {
            tasks.spawn(async move {
                task.await;
                None
            });
        }
        // Higher priorities first: their drivers are the first to be polled.
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
                    let handle = tasks.spawn(async move { Some(driver.run().await) });
                    purposes.insert(handle.id(), Purpose::Driver(id));
                }
                Some(ended) = tasks.join_next_with_id() => {
                    let (task, broke) = match ended {
                        Ok((task, _)) => (task, false),
                        Err(error) => (error.id(), error.is_panic()),
                    };
                    match purposes.remove(&task) {
                        Some(Purpose::Driver(id)) => {
                            if broke {
                                tracing::error!(instance = %id, "its driver broke; this is a bug; it is begun anew");
                            }
                            shared.signals.ended(id);
                            // A record may have come back while the driver was ending.
                            if shared.table.version(id).is_some() {
                                shared.signals.wake(id);
                            }
                        }
                        // Keepers go on for ever.
                        None => {}
                    }
                }
            }
        }
        tasks.shutdown().await;
    }
}

/// What should run, with its priority.
fn first_turn(record: &crate::control_link::record::InstanceRecord) -> Option<(InstanceId, i32)> {
    let instance = record.instance.as_ref();
    let instance = instance.filter(|i| record.managed && i.spec.run)?;
    Some((record.id, instance.spec.priority))
}

/// The tasks that look after what is the whole node's.
fn background_tasks(shared: &Arc<Shared>) -> [BoxFuture<'static, ()>; 12] {
    let keep = |name, make: fn(Arc<Shared>) -> BoxFuture<'static, ()>| {
        let shared = shared.clone();
        lasting(name, move || make(shared.clone())).boxed()
    };
    [
        keep("control", |s| control_watch::run(s).boxed()),
        keep("reporter", |s| reporter::run(s).boxed()),
        keep("facts", |s| facts::run(s).boxed()),
        keep("sweep", |s| sweep::run(s).boxed()),
        keep("image collection", |s| collection::run(s).boxed()),
        keep("events", |s| {
            let events = s.hypervisor.events();
            background_tasks::events(s, events).boxed()
        }),
        keep("network", |s| {
            let drift = s.guest_network.drift();
            background_tasks::network(s, drift).boxed()
        }),
        keep("metadata", |s| background_tasks::metadata(s).boxed()),
        keep("observations", |s| {
            background_tasks::observations(s).boxed()
        }),
        keep("guest diagnostics", |s| diagnostics::run(s).boxed()),
        keep("streams", |s| streams::run(s).boxed()),
        keep("boot", |s| background_tasks::boot_alone(s).boxed()),
    ]
}

/// A task that is begun anew when it breaks: an agent without one of its keepers would be deaf or mute, and look well.
/// The first is made at once, before this is polled.
fn lasting<W: Future<Output = ()> + Send + 'static>(
    name: &'static str,
    make: impl Fn() -> W + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let mut work = make();
    async move {
        loop {
            // What tasks share is changed as a whole, behind locks that outlive a panic.
            let broke = AssertUnwindSafe(work).catch_unwind().await.is_err();
            tracing::error!(
                keeper = name,
                broke,
                "a task of the agent ended, which is a bug; it is begun anew"
            );
            tokio::time::sleep(PAUSE).await;
            work = make();
        }
    }
}

/// What can be asked of a running agent, by tests and by its program.
#[derive(Clone)]
pub struct AgentView(Arc<Shared>);

impl AgentView {
    /// The status of an instance that waifud was or will be told.
    pub fn instance(&self, id: InstanceId) -> Option<InstanceReport> {
        self.0.reports.last_instance(id)
    }

    /// The node's facts, as far as gathered.
    pub fn facts(&self) -> Option<NodeFacts> {
        self.0.reports.last_facts()
    }

    /// Instances that there is a record of.
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
    async fn a_keeper_that_breaks_is_begun_anew() {
        let (begun, mut begins) = mpsc::unbounded_channel();
        let keeper = tokio::spawn(lasting("test", move || {
            begun.send(()).unwrap();
            async { panic!("this one is part of the test") }
        }));
        for _ in 0..2 {
            let heard = tokio::time::timeout(Duration::from_secs(30), begins.recv());
            assert_eq!(heard.await.unwrap(), Some(()));
        }
        keeper.abort();
    }
}
