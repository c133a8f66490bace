//! Arguments of `dns`.

use clap::{Args, Subcommand, ValueEnum};
use waifud_types::Name;
use waifud_types::dns::Resolver;

use clap_complete::engine::ArgValueCandidates;

use crate::complete;

#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Print the lines with which the resolver of your network resolves the names of instances
    #[command(
        after_help = "Examples:\n  waifuctl dns show\n  waifuctl dns show --for unbound > /etc/unbound/unbound.conf.d/waifud.conf\n  waifuctl dns show --for dnsmasq --on alder\n\n\
Set `listen` in section [dns] of agentd.toml on one node or several; each of them serves the names of all instances, so that \
others may be off. docs/reference/fabric.md describes it."
    )]
    Show(DnsShowArgs),
}

#[derive(Debug, Args)]
pub struct DnsShowArgs {
    /// The resolver; all of them by default
    #[arg(long = "for", value_name = "RESOLVER", value_enum)]
    pub resolver: Option<ResolverChoice>,
    /// The node that the resolver runs on; its loopback addresses are used, too
    #[arg(long, value_name = "NODE", add = ArgValueCandidates::new(complete::nodes))]
    pub on: Option<Name>,
}

/// A program that resolves names for other machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ResolverChoice {
    /// Pi-hole
    Pihole,
    /// Unbound
    Unbound,
    /// dnsmasq
    Dnsmasq,
    /// systemd-resolved
    SystemdResolved,
}

impl ResolverChoice {
    pub fn resolver(self) -> Resolver {
        match self {
            Self::Pihole => Resolver::Pihole,
            Self::Unbound => Resolver::Unbound,
            Self::Dnsmasq => Resolver::Dnsmasq,
            Self::SystemdResolved => Resolver::SystemdResolved,
        }
    }
}
