//! Listens to waifud: introduces the node, watches its slice, and goes on doing so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;
use waifud_api::agent::{Hello, WatchFrame};
use waifud_types::InstanceId;

use crate::backoff::Backoff;
use crate::control_link::durable::DurableError;
use crate::control_link::table::Concerns;
use crate::failpoints;
use crate::interfaces::LinkError;
use crate::shared::Shared;

/// How long the node's first facts are waited for before waifud hears of the node without them.
const FIRST_FACTS: Duration = Duration::from_secs(20);

/// Goes on for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(
        timing.retry_min,
        timing.retry_max.min(Duration::from_secs(5)),
    );
    // What can't be made durable ends a connection that is fine: the pauses grow all the same.
    let mut unwritable = backoff.clone();
    let mut told: Option<String> = None;
    loop {
        let ended = listen(&shared, &mut backoff).await;
        shared.welcomed.send_replace(false);
        let (pause, ended) = match ended {
            Ended::Link(why) => {
                unwritable.reset();
                (backoff.pause(), format!("waifud is not heard: {why}"))
            }
            Ended::Disk(error) => (
                unwritable.pause(),
                format!(
                    "what waifud says can't be taken over: {}",
                    crate::with_cause(&error)
                ),
            ),
        };
        if told.as_ref() != Some(&ended) {
            tracing::warn!("{ended}; trying again, guests go on");
            told = Some(ended);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Why a connection ended.
enum Ended {
    /// waifud, or the way to it.
    Link(String),
    /// The node's own disk.
    Disk(DurableError),
}

impl Ended {
    fn link(why: impl std::fmt::Display) -> Self {
        Self::Link(why.to_string())
    }
}

/// One connection's life. Returns why it ended.
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
    };
    hello.fit();
    let welcome = match failpoints::HELLO.around(shared.link.hello(&hello)).await {
        Ok(welcome) => welcome,
        Err(error) => return Ended::link(error),
    };
    match shared.table.welcome(&welcome) {
        Ok(true) => {
            tracing::error!(incarnation = %welcome.incarnation, "waifud's database is another than before: nothing is destroyed until an operator confirms");
            shared.facts_check.notify_one();
        }
        Ok(false) => {}
        Err(error) => return Ended::Disk(error),
    }
    shared.welcomed.send_replace(true);
    shared.reports.say_again();
    let since = shared.table.begin_watch();
    let mut frames = match shared.link.watch(since).await {
        Ok(frames) => frames,
        Err(LinkError::Gone) => {
            if let Err(error) = shared.table.forget_revision() {
                return Ended::Disk(error);
            }
            return Ended::link("it no longer has the history; everything is asked for again");
        }
        Err(error) => return Ended::link(error),
    };
    tracing::info!(node = %welcome.node, "waifud is heard");
    loop {
        let frame = match frames.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ended::link("it ended the watch"),
            Err(error) => return Ended::link(error),
        };
        backoff.reset();
        if let WatchFrame::Stream(order) = frame {
            shared.streams.order(order);
            continue;
        }
        match shared.table.apply(frame) {
            Ok(concerns) => pass_on(shared, concerns),
            // Nobody acts on what is not durable; the frame comes again with the next watch.
            Err(error) => return Ended::Disk(error),
        }
    }
}

fn pass_on(shared: &Shared, concerns: Concerns) {
    let wake = |ids: Vec<InstanceId>| ids.into_iter().for_each(|id| shared.signals.wake(id));
    match concerns {
        Concerns::Nobody => {}
        Concerns::Instances(ids) => wake(ids),
        Concerns::Everybody => {
            // A confirmation ends a condition: it is reported now and not with the next period.
            shared.facts_check.notify_one();
            shared.network_check.notify_one();
            shared.metadata_check.notify_one();
            wake(shared.table.records().iter().map(|r| r.id).collect());
        }
        Concerns::Synced => {
            shared.slice_known.store(true, Ordering::Relaxed);
            shared.start_allowed.send_replace(true);
            shared.sweep.notify_one();
            // What an agent that was killed in the middle of forgetting left behind.
            shared.metadata.tidy(&shared.table);
            wake(shared.table.records().iter().map(|r| r.id).collect());
        }
    }
}
