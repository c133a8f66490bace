//! Arguments of commands that change or remove instances.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use waifud_types::{ByteSize, Name};

use super::{LabelChanges, SelectArgs, WaitOptions, parse_duration};
use crate::complete;

#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    pub which: SelectArgs,
    /// Ignore names that do not exist
    #[arg(long, conflicts_with = "unmanaged")]
    pub ignore_missing: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
    /// Destroy unmanaged instances and their disks: those that exist on a node but not in waifud's database (see
    /// `waifuctl node show`)
    #[arg(long, conflicts_with_all = ["wait", "all", "selector"])]
    pub unmanaged: bool,
    /// With --unmanaged: the node that has the instances
    #[arg(long, value_name = "NODE", requires = "unmanaged", add = ArgValueCandidates::new(complete::nodes))]
    pub node: Option<String>,
    #[command(flatten)]
    pub wait: WaitOptions,
}

#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// Names or ids of unmanaged instances
    #[arg(required = true, value_name = "INSTANCE", value_parser = NonEmptyStringValueParser::new())]
    pub instances: Vec<String>,
    /// The node that has the instance; required if several nodes have one with that name
    #[arg(long, value_name = "NODE", add = ArgValueCandidates::new(complete::nodes))]
    pub node: Option<String>,
    /// Adopt the instance under this name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub select: SelectArgs,
    #[command(flatten)]
    pub wait: WaitOptions,
}

/// Arguments of `stop` and `reboot`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Power off immediately without shutting the guest down; unwritten data is lost
    #[arg(short, long)]
    pub force: bool,
    #[command(flatten)]
    pub which: StartArgs,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("sizes").required(true).multiple(true).args(["cpus", "memory", "disk"]))]
pub struct ResizeArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Number of virtual CPUs; takes effect at the next start
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory, for example 4G; takes effect at the next start
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<ByteSize>,
    /// Size of the root disk, for example 40G; takes effect immediately. Disks can only grow
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub disk: Option<ByteSize>,
    /// Reboot the instance so that new CPUs and memory take effect now
    #[arg(long)]
    pub restart: bool,
    #[command(flatten)]
    pub wait: WaitOptions,
}

#[derive(Debug, Args)]
pub struct RescueArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The template to boot [default: the template named rescue if it exists, otherwise Alpine from the catalog]
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with = "end", add = ArgValueCandidates::new(complete::templates))]
    pub template: Option<String>,
    /// A public SSH key for the rescue system: a file or the key itself [default: ~/.ssh/*.pub]
    #[arg(long, value_name = "KEY", conflicts_with = "end")]
    pub ssh_key: Vec<String>,
    /// Boot the instance's own disk again and delete the rescue disk
    #[arg(long)]
    pub end: bool,
    /// Power off immediately without shutting the guest down; unwritten data is lost
    #[arg(short, long)]
    pub force: bool,
    #[command(flatten)]
    pub wait: WaitOptions,
}

#[derive(Debug, Args)]
pub struct RecreateArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Run the instance on this node
    #[arg(long, add = ArgValueCandidates::new(complete::nodes))]
    pub node: Option<Name>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub wait: WaitOptions,
}

#[derive(Debug, Args)]
pub struct MoveArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The node to move to [default: chosen by waifud]
    #[arg(long, value_name = "NODE", add = ArgValueCandidates::new(complete::nodes))]
    pub to: Option<Name>,
    /// Give it an address of the new node's subnet on the network default [default: keep its address]
    #[arg(long)]
    pub new_address: bool,
    /// Cancel the move; possible until the new node has all disks
    #[arg(long, conflicts_with_all = ["to", "new_address", "wait"])]
    pub cancel: bool,
    #[command(flatten)]
    pub wait: WaitOptions,
}

#[derive(Debug, Args)]
pub struct ProtectArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Remove the protection
    #[arg(long)]
    pub off: bool,
}

#[derive(Debug, Args)]
pub struct LabelArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    #[command(flatten)]
    pub labels: LabelChanges,
}

#[derive(Debug, Args)]
pub struct EditArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Read new user-data from a file instead of opening an editor; - reads standard input
    #[arg(long, value_name = "FILE", conflicts_with = "spec")]
    pub user_data: Option<PathBuf>,
    /// Edit the description of the instance instead of its user-data
    #[arg(long)]
    pub spec: bool,
    /// Make cloud-init treat the next boot as the first boot
    #[arg(long)]
    pub re_run: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Names or ids of instances
    #[arg(required = true, add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// The state to wait for
    #[arg(long = "for", value_name = "STATE")]
    pub condition: WaitFor,
    /// How long to wait for all instances together, for example 90s, 10m or 1h [default: 5m, or 15m for an
    /// instance that is emulated without KVM]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum WaitFor {
    /// The virtual machine is running.
    Running,
    /// The instance has an address.
    Address,
    /// cloud-init in the guest has finished.
    Ready,
    /// The instance is off.
    Stopped,
    /// The instance and its disks are destroyed.
    Deleted,
}
