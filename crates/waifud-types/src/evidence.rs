//! Observations of a running guest since its start, which help explain why it is not ready.
//!
//! Nodes report them and waifud keeps them in memory; no decision depends on them. Paths and console lines are text
//! from the guest: bounded and without control characters, but they must still be escaped for a terminal.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Timestamp;

/// Maximum number of different requests per guest.
pub const REQUESTS_MAX: usize = 50;
/// Maximum number of modules per boot; cloud-init 25.1 has 60.
pub const MODULES_MAX: usize = 100;

/// Observations of a guest since its start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct GuestEvidence {
    /// Requests to the metadata service, one entry for each path and status, ordered by last occurrence; at most 50.
    pub requests: Vec<RequestSeen>,
    /// Time of the last DHCPACK, derived from the expiry in the lease file; null if there was none since the start.
    #[schema(value_type = Option<String>)]
    pub dhcp_acknowledged_at: Option<Timestamp>,
    /// Packets and frames dropped by the node's rules, summed over all nics; null until counted.
    pub dropped: Option<Dropped>,
    /// Packets that matched rules of the firewall; null without a firewall, and until counted.
    #[serde(default)]
    pub firewall: Option<FirewallCounts>,
    /// Modules of cloud-init in this boot, in the order of their start; at most 100.
    #[serde(default)]
    pub modules: Vec<ModuleSeen>,
    /// Up to three of the last console lines; lines about errors are preferred.
    pub console: Vec<String>,
}

/// Equal requests, counted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RequestSeen {
    /// The path, truncated if long.
    pub path: String,
    /// HTTP status of the response.
    pub status: u16,
    /// Number of requests.
    pub count: u64,
    /// Time of the last request.
    #[schema(value_type = String)]
    pub at: Timestamp,
}

/// A module of cloud-init, as reported by cloud-init.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ModuleSeen {
    /// Stage and module, for example `modules-final/scripts-user`.
    pub name: String,
    /// Time of the report of its start or, without one, of its end.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// The result; null while it is running.
    pub result: Option<ModuleResult>,
    /// Duration in milliseconds, on the guest's clock; null while it is running or if its start was not reported.
    pub took_ms: Option<u64>,
}

/// Result of a module, in cloud-init's terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModuleResult {
    /// Succeeded.
    Success,
    /// Succeeded with warnings.
    Warn,
    /// Failed.
    Fail,
}

/// Packets dropped by the node's rules since the port of the guest was created; starts and stops do not reset the
/// counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Dropped {
    /// Packets with a source address that does not belong to the guest.
    pub spoofed: u64,
    /// Packets to the host that guests must not send.
    pub to_host: u64,
}

/// Packets that matched rules of the firewall, since each rule was added on the node. Answers to connections that were opened
/// in the other direction are not counted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct FirewallCounts {
    /// Packets to the guest that no rule matched; counted only while the default of the direction is `deny`.
    #[serde(rename = "in")]
    pub incoming: u64,
    /// Packets from the guest that no rule matched; counted only while the default of the direction is `deny`.
    #[serde(rename = "out")]
    pub outgoing: u64,
    /// The rules.
    pub rules: Vec<RuleCount>,
}

/// Packets that matched a rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RuleCount {
    /// The id of the rule.
    pub id: String,
    /// Number of packets.
    pub packets: u64,
}

impl FirewallCounts {
    /// The packets that matched the rule with this id; `None` if the node has not counted it yet.
    pub fn of(&self, id: &str) -> Option<u64> {
        let mut rules = self.rules.iter();
        rules.find(|rule| rule.id == id).map(|rule| rule.packets)
    }
}
