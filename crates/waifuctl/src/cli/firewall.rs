//! Arguments of `firewall`.

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;
use waifud_types::firewall::FirewallProtocol;

use super::InstanceArg;
use crate::complete;

#[derive(Debug, Subcommand)]
pub enum FirewallCommand {
    /// Allow connections to or from an instance
    #[command(
        after_help = "Examples:\n  waifuctl firewall allow web --in --port 22 --from 192.168.1.0/24\n  waifuctl firewall allow db --from label:tier=front --port 5432\n  waifuctl firewall allow web --in\n\n\
The first rule that matches decides. New rules are added at the end, or with --first at the beginning. Without --protocol, \
--port, --from and --to, the command sets what happens to connections that no rule matches: for an instance without rules, \
both directions are allowed. Answers to allowed connections always pass.\n\n\
DHCP, DNS, ping of the gateway, metadata, and connections that the node itself opens (waifuctl ssh, forward) work \
whatever the rules."
    )]
    Allow(FirewallRuleArgs),
    /// Deny connections to or from an instance
    #[command(
        after_help = "Examples:\n  waifuctl firewall deny web --in\n  waifuctl firewall deny web --out --to instance:db --port 5432\n  waifuctl firewall deny web --in --first --from 192.0.2.66\n\n\
Packets of denied connections are dropped, also those of connections that are already established. See waifuctl firewall \
allow --help for the order of rules."
    )]
    Deny(FirewallRuleArgs),
    /// Remove rules
    #[command(after_help = "Example:\n  waifuctl firewall remove web 73c1b39f")]
    Remove(FirewallRemoveArgs),
    /// Show the rules of an instance, and how many packets each has matched
    #[command(
        after_help = "Examples:\n  waifuctl firewall list web\n  waifuctl firewall list web --json\n\n\
ADDRESSES are those that an instance or a label stands for now. Packets are counted since the rule was added on the present \
node, and reported about once a minute."
    )]
    List(InstanceArg),
}

/// A rule, or a default if nothing limits it.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("direction").required(true).multiple(true).args(["incoming", "outgoing", "from", "to"])))]
pub struct FirewallRuleArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Connections to the instance
    #[arg(long = "in", conflicts_with_all = ["outgoing", "to"])]
    pub incoming: bool,
    /// Connections from the instance
    #[arg(long = "out", conflicts_with = "from")]
    pub outgoing: bool,
    /// The protocol; tcp if there are ports, otherwise all
    #[arg(long, value_enum)]
    pub protocol: Option<ProtocolChoice>,
    /// Destination ports of the guest (--in) or of the other end (--out), separated by commas; repeatable
    #[arg(long = "port", value_name = "PORT[-PORT]", value_delimiter = ',')]
    pub ports: Vec<String>,
    /// Where connections to the instance come from: an address, a range, instance:NAME or label:KEY=VALUE
    #[arg(long, value_name = "PEER", conflicts_with = "to")]
    pub from: Option<String>,
    /// Where connections from the instance lead to: an address, a range, instance:NAME or label:KEY=VALUE
    #[arg(long, value_name = "PEER")]
    pub to: Option<String>,
    /// Add the rule before all others
    #[arg(long)]
    pub first: bool,
}

#[derive(Debug, Args)]
pub struct FirewallRemoveArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Ids of rules, as shown by waifuctl firewall list
    #[arg(required = true, value_parser = NonEmptyStringValueParser::new())]
    pub rules: Vec<String>,
}

/// The protocol of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ProtocolChoice {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// ICMP, for example ping
    Icmp,
}

impl From<ProtocolChoice> for FirewallProtocol {
    fn from(choice: ProtocolChoice) -> Self {
        match choice {
            ProtocolChoice::Tcp => Self::Tcp,
            ProtocolChoice::Udp => Self::Udp,
            ProtocolChoice::Icmp => Self::Icmp,
        }
    }
}
