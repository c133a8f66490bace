//! Waits until instances reach a state. A wait watches events: each event is a hint to read the instance again.

mod applied;
mod condition;
mod creation;
mod deadline;
mod moving;
mod nics;
mod watch;

use waifud_api::Instance;
use waifud_types::InstanceState;
use waifud_types::status::{CloudInitState, InstanceStatus};

pub use applied::{cannot_go_on, is_lost, until_applied};
pub use condition::{until_condition, until_reached, until_ready_again, word};
pub use creation::until_ready;
pub use deadline::Deadline;
pub use moving::until_moved;
pub use nics::until_nics;

use crate::failure::Failure;
use crate::text::escape;

/// Waits for `what`; Ctrl-C ends only the wait.
pub async fn or_detach<T>(
    what: impl Future<Output = Result<T, Failure>>,
    names: &str,
) -> Result<T, Failure> {
    tokio::select! {
        done = what => done,
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::interrupted(format!("stopped waiting for {names}; waifud continues in the background"))
                .hint("waifuctl list, or waifuctl why NAME"),
        ),
    }
}

/// Whether a wait for cloud-init is over: it has finished, or its end cannot be known.
pub fn cloud_init_is_over(status: &InstanceStatus) -> bool {
    let cloud_init = &status.cloud_init;
    status.ready || cloud_init.state.is_final() || cloud_init.unknown_because.is_some()
}

/// What the instance is waiting for.
pub fn waiting_for(status: &InstanceStatus) -> String {
    if let Some(step) = &status.step {
        let percent = step.percent.map_or_else(String::new, |p| format!(" {p}%"));
        let waiting = step
            .waiting_for
            .as_ref()
            .map_or_else(String::new, |w| format!(", waiting for: {w}"));
        return format!("{}{percent}{waiting}", step.name);
    }
    match (status.reason_in_english(), status.state) {
        (Some(reason), state) => format!("{state}, {reason}"),
        (None, InstanceState::Running) => "waiting for cloud-init in the guest".to_owned(),
        (None, state) => state.to_string(),
    }
}

/// Checks the result of cloud-init at the end of a wait. An unknown result is an error.
pub fn check_cloud_init(instance: Instance) -> Result<Instance, Failure> {
    let cloud_init = &instance.status.cloud_init;
    if cloud_init.state == CloudInitState::Unknown
        && let Some(because) = &cloud_init.unknown_because
    {
        return Err(Failure::input(
            "cloud-init-unknown",
            format!(
                "cannot determine whether cloud-init in {} has finished: {}",
                instance.name,
                escape(because)
            ),
        )
        .hint(format!(
            "the VM is running; to wait only for that, use waifuctl wait {} --for running",
            instance.name
        )));
    }
    if cloud_init.state != CloudInitState::Error {
        return Ok(instance);
    }
    let first = cloud_init
        .errors
        .first()
        .map_or_else(String::new, |e| format!(": {}", escape(e)));
    Err(Failure::input(
        "cloud-init-error",
        format!(
            "cloud-init in {} finished with errors{first}",
            instance.name
        ),
    )
    .hint(format!("waifuctl why {}; the VM is running", instance.name)))
}
