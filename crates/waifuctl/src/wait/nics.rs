//! Waits until a node has changed the nics of an instance.

use std::time::Duration;

use waifud_api::Instance;
use waifud_types::status::NicState;

use super::deadline::Deadline;
use super::watch::InstanceWatch;
use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;

/// The longest pause between two reads.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until `is_done`. Returns the instance as it is then.
pub async fn until_nics(
    context: &Context,
    ordered: Instance,
    deadline: Deadline,
    is_done: impl Fn(&Instance) -> bool,
) -> Result<Instance, Failure> {
    let mut watch = InstanceWatch::new(context, &ordered);
    let mut now = ordered;
    let spinner = progress::spinner(!context.printer.shows_progress());
    loop {
        if is_done(&now) {
            return Ok(now);
        }
        spinner.set_message(format!("{}: {}", now.name, what_is_missing(&now)));
        let left = deadline.left(&now.status);
        if left.is_zero() {
            let text = format!(
                "{}: {} when the deadline passed; waifud continues in the background",
                now.name,
                what_is_missing(&now)
            );
            return Err(Failure::deadline(text).hint(format!("waifuctl nic list {}", now.name)));
        }
        now = watch.next_existing(now, left.min(POLL_INTERVAL)).await?;
    }
}

fn what_is_missing(now: &Instance) -> String {
    if now.status.observed_generation < Some(now.generation) {
        return match &now.status.node {
            Some(node) => format!("{node} had not applied the change"),
            None => "the instance had no node".to_owned(),
        };
    }
    let mut nics = now.status.nics.iter();
    let unfinished = nics.find(|nic| matches!(nic.state, NicState::Adding | NicState::Removing));
    match unfinished {
        Some(nic) => match &nic.reason {
            Some(reason) => format!("nic {} was {}: {}", nic.name, nic.state, escape(reason)),
            None => format!("nic {} was {}", nic.name, nic.state),
        },
        None => "the node had not reported the nics".to_owned(),
    }
}
