//! Arguments of `nic`.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;
use waifud_api::CreateNic;
use waifud_types::MacAddr;

use super::{InstanceArg, WaitOptions};
use crate::{complete, network_args};

#[derive(Debug, Subcommand)]
pub enum NicCommand {
    /// Add a nic to an instance; a running guest gets it at once
    #[command(
        after_help = "Examples:\n  waifuctl nic add web --network lan --wait\n  waifuctl nic add web --network lan,address=192.168.1.50/24\n  waifuctl nic add web --network lan,vlan=20\n\n\
The guest sees a new network card. cloud-init configures it at the first boot only; on a guest that has booted before, configure \
it there, or see docs/guides/lan.md. A guest that is off gets it at its next start, and so does one without a free PCI slot. \
--wait ends when the guest has the nic, or is off."
    )]
    Add(NicAddArgs),
    /// Remove a nic from an instance
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  waifuctl nic remove web eth1 --wait\n  waifuctl nic remove web 52:54:00:12:34:56\n\n\
A running guest is asked to release the nic. If it does not, the nic is removed when the guest is off; until then, its addresses \
stay in use. To keep it after all, add it again with the same --network and --mac. The first nic cannot be removed."
    )]
    Remove(NicRemoveArgs),
    /// List the nics of an instance
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  waifuctl nic list web --json | jq -r '.items[].mac'\n\n\
* marks an observed address, as in waifuctl list. A nic that is being removed is listed until the guest has released it."
    )]
    List(InstanceArg),
}

#[derive(Debug, Args)]
pub struct NicAddArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The network, with the same settings as for create
    #[arg(long, value_name = "NAME[,KEY=VALUE…]", value_parser = network_args::network)]
    pub network: CreateNic,
    /// MAC address [default: generated]
    #[arg(long)]
    pub mac: Option<MacAddr>,
    /// Another address or range that the guest may send from; repeatable
    #[arg(long, value_name = "ADDRESS")]
    pub allow_address: Vec<String>,
    #[command(flatten)]
    pub wait: WaitOptions,
}

#[derive(Debug, Args)]
pub struct NicRemoveArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Name or MAC address of the nic
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub nic: String,
    #[command(flatten)]
    pub wait: WaitOptions,
}
