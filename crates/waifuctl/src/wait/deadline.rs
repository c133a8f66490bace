//! The time limit of a wait.

use std::time::Duration;

use tokio::time::Instant;
use waifud_types::status::{HypervisorKind, InstanceStatus};

/// The default limit.
const DEFAULT: Duration = Duration::from_mins(5);
/// The default limit for an emulated instance: without KVM, a boot takes several minutes.
const EMULATED: Duration = Duration::from_mins(15);

/// When a wait ends. A limit that the user did not set is longer for emulated instances.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    begun: Instant,
    limit: Duration,
    emulated: Duration,
}

impl Deadline {
    /// The deadline of a wait that begins now. `timeout` is the user's limit.
    pub fn begin(timeout: Option<Duration>) -> Self {
        Self {
            begun: Instant::now(),
            limit: timeout.unwrap_or(DEFAULT),
            emulated: timeout.unwrap_or(EMULATED),
        }
    }

    /// The deadline as long as no instance is known to be emulated.
    pub fn at(self) -> Instant {
        self.begun + self.limit
    }

    /// The time that is left for an instance.
    pub fn left(self, status: &InstanceStatus) -> Duration {
        self.limit_for(status).saturating_sub(self.begun.elapsed())
    }

    fn limit_for(self, status: &InstanceStatus) -> Duration {
        if is_emulated(status) {
            self.emulated
        } else {
            self.limit
        }
    }
}

/// For the progress of a wait: why it takes long.
pub fn slowness(status: &InstanceStatus) -> &'static str {
    if is_emulated(status) {
        " (emulated without KVM: this takes minutes)"
    } else {
        ""
    }
}

fn is_emulated(status: &InstanceStatus) -> bool {
    status.hypervisor == Some(HypervisorKind::Tcg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_limit_is_longer_for_an_emulated_instance_and_a_given_one_is_not() {
        let mut status = InstanceStatus::pending(None);
        let limits = |status: &InstanceStatus| {
            let given = Deadline::begin(Some(Duration::from_secs(90)));
            let default = Deadline::begin(None);
            (default.limit_for(status), given.limit_for(status))
        };
        let given = Duration::from_secs(90);
        assert_eq!(limits(&status), (DEFAULT, given), "not known yet");
        status.hypervisor = Some(HypervisorKind::Kvm);
        assert_eq!(limits(&status), (DEFAULT, given));
        assert_eq!(slowness(&status), "");
        status.hypervisor = Some(HypervisorKind::Tcg);
        assert_eq!(limits(&status), (EMULATED, given));
        assert!(slowness(&status).contains("without KVM"));
    }
}
