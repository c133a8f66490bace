//! The firewall of an instance in the API.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::firewall::{
    FirewallAction, FirewallDirection, FirewallProtocol, FirewallRule, FirewallSpec,
};
use waifud_types::{InstanceId, Name};

/// The complete firewall of an instance; rules that are not in it are removed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetFirewall {
    /// What happens to connections to the guest that no rule matches; `allow` by default.
    #[serde(rename = "in", default)]
    pub incoming: FirewallAction,
    /// What happens to connections from the guest that no rule matches; `allow` by default.
    #[serde(rename = "out", default)]
    pub outgoing: FirewallAction,
    /// The rules of both directions, at most 64; the first one that matches decides.
    #[serde(default)]
    pub rules: Vec<SetFirewallRule>,
}

/// A rule of a firewall.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetFirewallRule {
    /// The direction of the connections that it matches.
    pub direction: FirewallDirection,
    /// What it does.
    pub action: FirewallAction,
    /// The protocol; all by default. Rules with ports need `tcp` or `udp`.
    pub protocol: Option<FirewallProtocol>,
    /// Destination ports and ranges, at most 15, for example `22` or `8000-8010`; all by default.
    #[serde(default)]
    pub ports: Vec<String>,
    /// The other end of the connection: an IPv4 address or range, `instance:NAME` or `label:KEY=VALUE`; all by default.
    pub peer: Option<String>,
}

impl SetFirewall {
    /// Whether it lets every packet pass.
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }
}

impl From<&FirewallSpec> for SetFirewall {
    fn from(spec: &FirewallSpec) -> Self {
        Self {
            incoming: spec.incoming,
            outgoing: spec.outgoing,
            rules: spec.rules.iter().map(SetFirewallRule::from).collect(),
        }
    }
}

impl From<&FirewallRule> for SetFirewallRule {
    fn from(rule: &FirewallRule) -> Self {
        Self {
            direction: rule.direction,
            action: rule.action,
            protocol: rule.protocol,
            ports: rule.ports.iter().map(ToString::to_string).collect(),
            peer: rule.peer.as_ref().map(ToString::to_string),
        }
    }
}

/// `GET /v1/instances/{name}/firewall`: the rules of an instance, with the addresses that they stand for, and the packets that
/// its node has counted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceFirewall {
    /// Id of the instance.
    pub instance: InstanceId,
    /// Name of the instance.
    pub name: Name,
    /// What happens to connections to the guest that no rule matches.
    #[serde(rename = "in")]
    pub incoming: FirewallDefault,
    /// What happens to connections from the guest that no rule matches.
    #[serde(rename = "out")]
    pub outgoing: FirewallDefault,
    /// The rules of both directions; the first one that matches decides.
    pub rules: Vec<FirewallRuleState>,
}

/// The default of a direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FirewallDefault {
    /// What it does.
    pub action: FirewallAction,
    /// Packets that no rule matched; null unless they are dropped and the node has reported a count.
    pub packets: Option<u64>,
}

/// A rule in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FirewallRuleState {
    /// The id of the rule, derived from what it says.
    pub id: String,
    /// What it says.
    #[serde(flatten)]
    pub rule: FirewallRule,
    /// The addresses that the peer stands for; null if the peer is an address or absent. A rule without any matches nothing.
    #[schema(value_type = Option<Vec<String>>)]
    pub addresses: Option<Vec<Ipv4Net>>,
    /// Packets that the rule matched since it was added on the node; null until the node has reported a count.
    pub packets: Option<u64>,
}

/// The addresses that an instance or a label in a firewall stands for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PeerAddresses {
    /// The peer, as in the rules.
    pub peer: String,
    /// Its addresses, sorted and merged; empty if no instance has any.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<Ipv4Net>,
}
