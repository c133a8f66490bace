//! What a running guest was seen to do since its start: evidence for whoever asks why it is not ready.
//!
//! A node says it, waifud keeps it in memory, nobody decides by it. Paths and lines of the console are the guest's own
//! text: bounded and without control characters, and still to be escaped before they reach a terminal.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Timestamp;

/// Different requests of one guest that are kept at most.
pub const REQUESTS_MAX: usize = 50;
/// Modules of one boot that are kept at most; cloud-init 25.1 has 60.
pub const MODULES_MAX: usize = 100;

/// What one guest was seen to do since its start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct GuestEvidence {
    /// Its requests to the metadata service, each kind once, in the order of their last time; at most 50.
    pub requests: Vec<RequestSeen>,
    /// When its lease was confirmed last (DHCPACK), as the lease file's expiry tells; null when not since its start.
    #[schema(value_type = Option<String>)]
    pub dhcp_acknowledged_at: Option<Timestamp>,
    /// Packets and frames of its that the node's rules dropped, all its nics together; null while nobody has counted.
    pub dropped: Option<Dropped>,
    /// cloud-init's modules in this boot, in the order in which they began; at most 100.
    #[serde(default)]
    pub modules: Vec<ModuleSeen>,
    /// Its last words on the serial console, at most three lines: those that tell of trouble, if there are any.
    pub console: Vec<String>,
}

/// One kind of request, counted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RequestSeen {
    /// The path, shortened.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
    /// How often.
    pub count: u64,
    /// The last time.
    #[schema(value_type = String)]
    pub at: Timestamp,
}

/// One module of cloud-init, as cloud-init itself reported it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ModuleSeen {
    /// Stage and module, such as `modules-final/scripts-user`.
    pub name: String,
    /// When its start, or else its end, was reported.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// How it ended; null while it runs.
    pub result: Option<ModuleResult>,
    /// How long it took in milliseconds, by the guest's clock; null while it runs and when its start was not reported.
    pub took_ms: Option<u64>,
}

/// How a module ended, in cloud-init's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModuleResult {
    /// Without complaint.
    Success,
    /// With warnings.
    Warn,
    /// It failed.
    Fail,
}

/// What the node's rules dropped since the guest's port was made: starts and stops do not reset it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Dropped {
    /// Because the source was not the guest's own: anti-spoofing.
    pub spoofed: u64,
    /// Because guests may not send it to the host.
    pub to_host: u64,
}
