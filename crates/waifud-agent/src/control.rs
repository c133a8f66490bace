//! Listens to waifud: introduces the node, watches its slice, and goes on doing so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;
use waifud_api::agent::{Hello, WatchFrame};
use waifud_types::InstanceId;

use crate::backoff::Backoff;
use crate::faults;
use crate::seam::LinkError;
use crate::shared::Shared;
use crate::table::Concerns;

/// How long the node's first facts are waited for before waifud hears of the node without them.
const FIRST_FACTS: Duration = Duration::from_secs(20);

/// Goes on for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(
        timing.retry_min,
        timing.retry_max.min(Duration::from_secs(5)),
    );
    let mut told: Option<String> = None;
    loop {
        let ended = listen(&shared, &mut backoff).await;
        shared.welcomed.send_replace(false);
        let pause = backoff.pause();
        if told.as_ref() != Some(&ended) {
            tracing::warn!("waifud is not heard: {ended}; trying again, guests go on");
            told = Some(ended);
        }
        tokio::time::sleep(pause).await;
    }
}

/// One connection's life. Returns why it ended.
async fn listen(shared: &Arc<Shared>, backoff: &mut Backoff) -> String {
    let facts = if let Some(facts) = shared.reports.last_facts() {
        facts
    } else {
        match timeout(FIRST_FACTS, crate::facts::gather(shared)).await {
            Ok(facts) => facts,
            Err(_) => crate::facts::unfinished(shared).await,
        }
    };
    let hello = Hello {
        name: shared.settings.node.clone(),
        facts,
        now: shared.now(),
    };
    let welcome = match faults::HELLO.around(shared.link.hello(&hello)).await {
        Ok(welcome) => welcome,
        Err(error) => return error.to_string(),
    };
    match shared.table.welcome(&welcome) {
        Ok(true) => {
            tracing::error!(incarnation = %welcome.incarnation, "waifud's database is another than before: nothing is destroyed until an operator confirms");
            shared.facts_check.notify_one();
        }
        Ok(false) => {}
        Err(error) => return crate::with_cause(&error),
    }
    shared.welcomed.send_replace(true);
    shared.reports.say_again();
    let since = shared.table.begin_watch();
    let mut frames = match shared.link.watch(since).await {
        Ok(frames) => frames,
        Err(LinkError::Gone) => {
            if let Err(error) = shared.table.forget_revision() {
                return crate::with_cause(&error);
            }
            return "it no longer has the history; everything is asked for again".to_owned();
        }
        Err(error) => return error.to_string(),
    };
    tracing::info!(node = %welcome.node, "waifud is heard");
    loop {
        let frame = match frames.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return "it ended the watch".to_owned(),
            Err(error) => return error.to_string(),
        };
        backoff.reset();
        if let WatchFrame::Stream(order) = frame {
            shared.streams.order(order);
            continue;
        }
        match shared.table.apply(frame) {
            Ok(concerns) => pass_on(shared, concerns),
            // Nobody acts on what is not durable; the frame comes again with the next watch.
            Err(error) => return crate::with_cause(&error),
        }
    }
}

fn pass_on(shared: &Shared, concerns: Concerns) {
    let wake = |ids: Vec<InstanceId>| ids.into_iter().for_each(|id| shared.signals.wake(id));
    match concerns {
        Concerns::Nobody => {}
        Concerns::Instances(ids) => wake(ids),
        Concerns::Everybody => {
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
