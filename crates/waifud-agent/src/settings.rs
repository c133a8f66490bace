//! The agent's settings and timing.

use std::path::PathBuf;
use std::time::Duration;

use waifud_types::Name;

/// The settings of an agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name.
    pub node: Name,
    /// The version that is reported.
    pub agent_version: String,
    /// Durable state: records, bundles, console logs.
    pub state_dir: PathBuf,
    /// State that may be lost at a reboot: sockets.
    pub run_dir: PathBuf,
    /// The bridge of the `default` network.
    pub bridge: String,
    /// The interface of the tunnel to metadatad.
    pub metadata_interface: String,
    /// The MTU of guests' nics: that of the tunnel, through which requests to metadatad are sent.
    pub mtu: u16,
    /// The DNS domain of guests.
    pub domain: String,
    /// Whether guests are started before waifud has answered.
    pub boot_alone: BootAlone,
    /// User and group of QEMU, which own the directories that it writes to; `None` leaves them to root.
    pub qemu_owner: Option<(u32, u32)>,
    /// Periods and time limits.
    pub timing: Timing,
}

/// Whether a node that boots without contact to waifud starts its guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BootAlone {
    /// At once.
    #[default]
    Start,
    /// After this time without an answer from waifud.
    Wait(Duration),
    /// Only once waifud has answered.
    Never,
}

/// Periods and time limits.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// The minimum time between two reports.
    pub report_gap: Duration,
    /// Between two runs of gathering the node's facts.
    pub facts: Duration,
    /// Between two checks of the host's bridges. It is short because users expect a new bridge in waifuctl at once.
    pub bridges: Duration,
    /// Between two passes for an instance in its desired state.
    pub period: Duration,
    /// Between two searches for unmanaged objects.
    pub sweep: Duration,
    /// How long an unused image stays in a pool.
    pub image_grace: Duration,
    /// Between two periodic repairs of the network.
    pub network: Duration,
    /// Between two periodic repairs of the fabric.
    pub fabric: Duration,
    /// Between two attempts to listen on the peer port.
    pub peer_port: Duration,
    /// Between two checks of the metadata service.
    pub metadata: Duration,
    /// How long the metadata service may be unreachable before guests are started with a disk of their documents instead.
    /// This is longer than a restart or an upgrade, and about as long as a guest waits for documents at boot.
    pub metadata_patience: Duration,
    /// Between two checks whether metadatad answers, without which guests' reports are refused.
    pub report_port: Duration,
    /// How long metadatad has to be silent before guests' reports are refused.
    pub refuse_reports_after: Duration,
    /// The first pause after a failure. Each further pause is twice as long.
    pub retry_min: Duration,
    /// The longest pause after a failure.
    pub retry_max: Duration,
    /// How long a guest may take to shut down.
    pub grace: Duration,
    /// The first pause before a restart after a crash.
    pub restart_min: Duration,
    /// The longest pause before a restart.
    pub restart_max: Duration,
    /// A run longer than this ends a series of crashes.
    pub stable: Duration,
    /// The first pause between two probes of cloud-init.
    pub ready_min: Duration,
    /// The longest pause between two probes.
    pub ready_max: Duration,
    /// How long after its boot a guest without a reporter may stay silent before its state is reported as unknown.
    pub unknown: Duration,
    /// Between two collections of diagnostics while a guest boots.
    pub evidence: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            report_gap: Duration::from_millis(100),
            facts: Duration::from_mins(1),
            bridges: Duration::from_secs(3),
            period: Duration::from_mins(1),
            sweep: Duration::from_mins(1),
            image_grace: Duration::from_hours(24),
            network: Duration::from_mins(2),
            fabric: Duration::from_secs(5),
            peer_port: Duration::from_secs(10),
            metadata: Duration::from_secs(10),
            metadata_patience: Duration::from_mins(2),
            report_port: Duration::from_millis(500),
            refuse_reports_after: Duration::from_secs(2),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            grace: Duration::from_secs(90),
            restart_min: Duration::from_secs(1),
            restart_max: Duration::from_mins(1),
            stable: Duration::from_mins(5),
            ready_min: Duration::from_secs(1),
            ready_max: Duration::from_secs(30),
            unknown: Duration::from_mins(2),
            evidence: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as one line, so that the place of its line breaks does not matter.
    fn page(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let timing = Timing::default();
        let cli = page(include_str!("../../../docs/reference/cli.md"));
        assert!(cli.contains("a guest that does not react within 90 seconds is powered off"));
        assert_eq!(timing.grace, Duration::from_secs(90));

        let images = page(include_str!("../../../docs/guides/images.md"));
        assert!(images.contains("no instance on the node has needed it for 24 hours"));
        assert_eq!(timing.image_grace, Duration::from_hours(24));
        assert!(images.contains("the service has been unreachable for two minutes"));
        assert_eq!(timing.metadata_patience, Duration::from_mins(2));

        let troubleshooting = page(include_str!("../../../docs/guides/troubleshooting.md"));
        let pauses = "Each pause before a restart is longer than the last one, up to one minute";
        assert!(troubleshooting.contains(pauses));
        assert!(timing.restart_min < timing.restart_max);
        assert_eq!(timing.restart_max, Duration::from_mins(1));
        let stable = "The count is reset after the guest has run for five minutes";
        assert!(troubleshooting.contains(stable));
        assert_eq!(timing.stable, Duration::from_mins(5));
    }
}
