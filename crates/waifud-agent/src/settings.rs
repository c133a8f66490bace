//! What an agent is told about its node, and its clocks' hands.

use std::path::PathBuf;
use std::time::Duration;

use waifud_types::Name;

/// What an agent is told about its node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name.
    pub node: Name,
    /// The version that is reported.
    pub agent_version: String,
    /// Durable state: records, bundles, consoles' logs.
    pub state_dir: PathBuf,
    /// What may vanish at a reboot: sockets.
    pub run_dir: PathBuf,
    /// The bridge of the `default` network.
    pub bridge: String,
    /// The interface that leads to metadatad.
    pub metadata_interface: String,
    /// MTU of guests' nics. What goes to metadatad is wrapped, so it is that of the tunnel.
    pub mtu: u16,
    /// The DNS domain of guests.
    pub domain: String,
    /// Whether guests are started before waifud was heard.
    pub boot_alone: BootAlone,
    /// User and group that QEMU runs as: owners of the directories that it writes to. Null leaves them root's.
    pub qemu_owner: Option<(u32, u32)>,
    /// How long things take and how often they are looked at.
    pub timing: Timing,
}

/// Whether a node that boots with nobody to ask starts its guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BootAlone {
    /// At once.
    #[default]
    Start,
    /// When waifud was not heard for this long.
    Wait(Duration),
    /// Not before waifud was heard.
    Never,
}

/// How long things take and how often they are looked at.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Between two reports at least.
    pub report_gap: Duration,
    /// Between two looks at the node's facts.
    pub facts: Duration,
    /// Between two looks at the host's bridges: whoever makes one expects it to be known when they turn to waifuctl.
    pub bridges: Duration,
    /// Between two looks at a settled instance.
    pub period: Duration,
    /// Between two looks for what is in nobody's list.
    pub sweep: Duration,
    /// An image stays in a pool for this long after nothing needs it any more.
    pub image_grace: Duration,
    /// Between two unasked repairs of the network.
    pub network: Duration,
    /// Between two looks at the metadata service.
    pub metadata: Duration,
    /// The first pause after a failure; each further one is twice as long.
    pub retry_min: Duration,
    /// The longest pause after a failure.
    pub retry_max: Duration,
    /// How long a guest may take to shut down.
    pub grace: Duration,
    /// The first pause before a restart after a crash.
    pub restart_min: Duration,
    /// The longest.
    pub restart_max: Duration,
    /// A run longer than this ends a series of crashes.
    pub stable: Duration,
    /// The first pause between two looks at cloud-init.
    pub ready_min: Duration,
    /// The longest.
    pub ready_max: Duration,
    /// How long after its boot a guest that nothing can be learned of may stay silent before that is said.
    pub unknown: Duration,
    /// Between two looks at what a guest that boots does.
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
            metadata: Duration::from_secs(10),
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
