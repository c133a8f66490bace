//! Changes that depend on the present state of an instance: they are sent with its generation, and repeated if another client has
//! changed the instance first. Then the wait for its node.

use std::time::{Duration, Instant};

use waifud_api::Instance;
use waifud_types::InstanceState;

use crate::context::Context;
use crate::failure::Failure;

/// Maximum number of attempts if other clients change the instance concurrently.
const TRIES: u32 = 5;

/// The status of a request for a generation that is not the present one (RFC 9110, section 15.5.13).
const OUTDATED: u16 = 412;

/// How long to wait for the node, which normally applies a change within milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The first and the longest pause between two reads.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Reads an instance and changes it, again if the change was meant for an older generation.
pub async fn change_present<T>(
    context: &Context,
    name: &str,
    change: impl AsyncFn(Instance) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut tries = 1;
    loop {
        let instance = context.client.instance(name).await?;
        match change(instance).await {
            Err(failure) if failure.status() == OUTDATED && tries < TRIES => tries += 1,
            outcome => return outcome,
        }
    }
}

/// Waits until the node has observed the last change and the condition holds, or it is unreachable.
pub async fn until_observed(
    context: &Context,
    mut instance: Instance,
    condition: fn(&Instance) -> bool,
) -> Result<Instance, Failure> {
    let generation = instance.generation;
    let id = instance.id.to_string();
    let deadline = Instant::now() + TIMEOUT;
    let mut pause = PAUSES.0;
    loop {
        let status = &instance.status;
        let reachable = status.node.is_some() && status.state != InstanceState::Unknown;
        let applied = status.observed_generation >= Some(generation) && condition(&instance);
        if applied || !reachable || Instant::now() >= deadline {
            return Ok(instance);
        }
        tokio::time::sleep(pause).await;
        pause = PAUSES.1.min(pause * 2);
        instance = context.client.instance(&id).await?;
    }
}
