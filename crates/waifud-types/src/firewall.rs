//! The firewall of an instance: ordered rules for each direction, of which the first that matches a packet decides.
//!
//! A packet that no rule matches is subject to the direction's default. An instance without rules has the default `allow`
//! in both directions.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Name, string_conversions};

/// Maximum number of rules of one instance.
pub const RULES_MAX: usize = 64;
/// Maximum number of ports and ranges of one rule.
pub const PORTS_MAX: usize = 15;

/// The firewall of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct FirewallSpec {
    /// What happens to connections to the guest that no rule matches.
    #[serde(rename = "in")]
    pub incoming: FirewallAction,
    /// What happens to connections from the guest that no rule matches.
    #[serde(rename = "out")]
    pub outgoing: FirewallAction,
    /// The rules of both directions; the first one that matches decides.
    pub rules: Vec<FirewallRule>,
}

/// What a rule does.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum FirewallAction {
    /// Lets packets pass.
    #[default]
    Allow,
    /// Drops packets.
    Deny,
}

names! {
    /// The name in the API.
    FirewallAction {
        Allow => "allow",
        Deny => "deny",
    }
}

/// The direction of a connection, as the guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FirewallDirection {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

names! {
    /// The name in the API.
    FirewallDirection {
        In => "in",
        Out => "out",
    }
}

/// The protocol that a rule is limited to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FirewallProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, for example ping.
    Icmp,
}

names! {
    /// The name in the API and in firewall rules.
    FirewallProtocol {
        Tcp => "tcp",
        Udp => "udp",
        Icmp => "icmp",
    }
}

/// One rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FirewallRule {
    /// The direction of the connections that it matches.
    pub direction: FirewallDirection,
    /// What it does.
    pub action: FirewallAction,
    /// The protocol; null for all.
    pub protocol: Option<FirewallProtocol>,
    /// Destination ports and ranges, sorted and merged, for example `22` or `8000-8010`; empty for all.
    #[schema(value_type = Vec<String>)]
    pub ports: Vec<PortRange>,
    /// The other end of the connection: an address or a range, `instance:NAME` or `label:KEY=VALUE`; null for all.
    #[schema(value_type = Option<String>)]
    pub peer: Option<FirewallPeer>,
}

impl FirewallSpec {
    /// Whether it lets every packet pass.
    pub fn is_open(&self) -> bool {
        let defaults = [self.incoming, self.outgoing];
        self.rules.is_empty() && defaults == [FirewallAction::Allow; 2]
    }

    /// The default of a direction.
    pub const fn default_of(&self, direction: FirewallDirection) -> FirewallAction {
        match direction {
            FirewallDirection::In => self.incoming,
            FirewallDirection::Out => self.outgoing,
        }
    }

    /// The default of a direction, to change it.
    pub const fn default_of_mut(&mut self, direction: FirewallDirection) -> &mut FirewallAction {
        match direction {
            FirewallDirection::In => &mut self.incoming,
            FirewallDirection::Out => &mut self.outgoing,
        }
    }

    /// The peers whose addresses only waifud knows.
    pub fn named_peers(&self) -> impl Iterator<Item = &FirewallPeer> {
        let peers = self.rules.iter().filter_map(|rule| rule.peer.as_ref());
        peers.filter(|peer| !matches!(peer, FirewallPeer::Address(_)))
    }
}

impl FirewallRule {
    /// Whether both match the same packets. The actions may differ.
    pub fn matches_the_same(&self, other: &Self) -> bool {
        (self.direction, self.protocol) == (other.direction, other.protocol)
            && self.ports == other.ports
            && self.peer == other.peer
    }

    /// Its id.
    pub fn id(&self) -> RuleId {
        RuleId::of(&self.to_string())
    }
}

impl fmt::Display for FirewallRule {
    /// For example `allow in tcp 22,8000-8010 from 10.144.2.3/32`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action.as_str(), self.direction.as_str())?;
        if let Some(protocol) = self.protocol {
            write!(f, " {}", protocol.as_str())?;
        }
        for (index, ports) in self.ports.iter().enumerate() {
            f.write_str(if index == 0 { " " } else { "," })?;
            ports.fmt(f)?;
        }
        if let Some(peer) = &self.peer {
            let word = match self.direction {
                FirewallDirection::In => "from",
                FirewallDirection::Out => "to",
            };
            write!(f, " {word} {peer}")?;
        }
        Ok(())
    }
}

/// The id of a rule, derived from what it says: the same rule has the same id on every node, and after it was removed and
/// added again. Written as eight hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleId(u32);

impl RuleId {
    fn of(text: &str) -> Self {
        // FNV-1a. Two rules of one instance with the same id are refused.
        let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        Self(hash)
    }

    /// Reads an id in its written form.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Self(u32::from_str_radix(text, 16).ok()?);
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:08x}", self.0))
    }
}

/// A port, or a range of ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is not a port or a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PortRangeError {
    /// It is not a number from 1 to 65535.
    #[error("a port is a number from 1 to 65535, and a range is FIRST-LAST, for example 8000-8010")]
    NotAPort,
    /// The first port is greater than the last one.
    #[error("the first port of a range must not be greater than the last one")]
    Inverted,
}

impl PortRange {
    /// The ports from `first` to `last`.
    pub const fn new(first: u16, last: u16) -> Result<Self, PortRangeError> {
        if first == 0 {
            Err(PortRangeError::NotAPort)
        } else if first > last {
            Err(PortRangeError::Inverted)
        } else {
            Ok(Self { first, last })
        }
    }

    /// Sorts ranges, and merges those that overlap or are adjacent.
    pub fn merged(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut merged: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.first <= last.last.saturating_add(1) => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        merged
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        Ok(())
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| {
            // `parse` also accepts a plus sign.
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|number| *number > 0);
            number.filter(|_| digits).ok_or(PortRangeError::NotAPort)
        };
        Self::new(port(first)?, port(last)?)
    }
}

string_conversions!(PortRange);

/// The other end of a connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FirewallPeer {
    /// An address or a range, without host bits.
    Address(Ipv4Net),
    /// The addresses of an instance.
    Instance(Name),
    /// The addresses of all instances with this label.
    Label {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
}

/// Why a text is not a peer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FirewallPeerError {
    /// It has none of the forms.
    #[error(
        "a peer is an IPv4 address or range (10.144.2.3, 192.168.1.0/24), instance:NAME or label:KEY=VALUE"
    )]
    UnknownForm,
    /// It is an IPv6 address.
    #[error("guests on the network default have no IPv6, so a rule cannot have an IPv6 address")]
    Ipv6,
    /// A range has host bits.
    #[error("the range {given} has host bits; {meant} is the range that contains it")]
    HostBits {
        /// The range as given.
        given: Ipv4Net,
        /// The range without host bits.
        meant: Ipv4Net,
    },
    /// The name of an instance is not valid.
    #[error("instance: is followed by the name of an instance, for example instance:db")]
    Name,
    /// A label is not valid.
    #[error("label: is followed by KEY=VALUE, for example label:tier=front")]
    Label,
}

/// Maximum length of a label's key and of its value in a peer, as for labels of instances.
const KEY_MAX: usize = 63;
const VALUE_MAX: usize = 255;

impl FromStr for FirewallPeer {
    type Err = FirewallPeerError;

    fn from_str(text: &str) -> Result<Self, FirewallPeerError> {
        if let Some(name) = text.strip_prefix("instance:") {
            let name = name.parse().map_err(|_| FirewallPeerError::Name)?;
            return Ok(Self::Instance(name));
        }
        if let Some(label) = text.strip_prefix("label:") {
            let (key, value) = label.split_once('=').ok_or(FirewallPeerError::Label)?;
            let key_char = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            let good_key = (1..=KEY_MAX).contains(&key.len()) && key.chars().all(key_char);
            let good_value =
                value.chars().count() <= VALUE_MAX && !value.chars().any(char::is_control);
            if !good_key || !good_value {
                return Err(FirewallPeerError::Label);
            }
            return Ok(Self::Label {
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        if let Ok(given) = text.parse::<Ipv4Net>() {
            let meant = given.trunc();
            if given != meant {
                return Err(FirewallPeerError::HostBits { given, meant });
            }
            return Ok(Self::Address(given));
        }
        if text.parse::<ipnet::Ipv6Net>().is_ok() || text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Err(FirewallPeerError::Ipv6);
        }
        Err(FirewallPeerError::UnknownForm)
    }
}

impl fmt::Display for FirewallPeer {
    /// A single address is shown without a prefix length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(net) if net.prefix_len() == 32 => net.addr().fmt(f),
            Self::Address(net) => net.fmt(f),
            Self::Instance(name) => write!(f, "instance:{name}"),
            Self::Label { key, value } => write!(f, "label:{key}={value}"),
        }
    }
}

string_conversions!(FirewallPeer);

#[cfg(test)]
mod tests;
