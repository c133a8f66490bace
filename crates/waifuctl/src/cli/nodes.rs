//! Arguments of `node`.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;
use waifud_types::Name;

use super::{JoinTokenCommand, LabelChanges, parse_duration};
use crate::complete;

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    #[command(visible_alias = "ls")]
    List,
    /// Show one node in full
    Show(NodeArg),
    /// Print the command that makes another machine a node
    #[command(
        after_help = "Examples:\n  waifuctl node add\n  waifuctl node add birch --wait\n  waifuctl node add birch --read-first\n\n\
Run the printed command on the new machine, as a user who can use sudo. It downloads a script from waifud, whose key it \
checks, and the script installs waifud's package, joins and starts the daemons. The command contains a join token, which \
admits one machine, once. With NAME, the node gets that name instead of the machine's hostname; a node of that name that \
joined before gets a new key."
    )]
    Add(NodeAddArgs),
    /// Place no new instances on nodes; those on them are not affected
    #[command(
        after_help = "Examples:\n  waifuctl node cordon alder\n  waifuctl node uncordon alder\n\n\
A node can be cordoned while it is off. An instance that is pinned to a cordoned node stays pending."
    )]
    Cordon(NodesArg),
    /// Let cordoned nodes accept new instances again; pending instances are then placed
    #[command(after_help = "Example:\n  waifuctl node uncordon alder")]
    Uncordon(NodesArg),
    /// Move all instances of a node to other nodes, for example before maintenance
    #[command(
        after_help = "Examples:\n  waifuctl node drain alder --explain\n  waifuctl node drain alder --wait\n  waifuctl node drain alder --cancel\n\n\
The node is cordoned, and its instances move away like with `waifuctl move`, two at a time; each guest is off while its disks \
are copied. An instance that fits on no other node stays where it is, and is moved as soon as it fits. The drain ends when \
the node is empty; the node stays cordoned until `waifuctl node uncordon`, which also ends a drain."
    )]
    Drain(NodeDrainArgs),
    /// Confirm nodes after a restore of waifud's database; unconfirmed nodes do not destroy anything
    #[command(
        after_help = "Examples:\n  waifuctl node confirm alder\n  waifuctl node confirm --all --yes\n\n\
Before you confirm a node, adopt the unmanaged instances that you want to keep, and delete the instances that were \
deleted after the backup."
    )]
    Confirm(ConfirmArgs),
    /// Set or remove labels of a node; `create --require` selects nodes by label
    #[command(
        after_help = "Examples:\n  waifuctl node label alder disk=ssd room=cellar\n  waifuctl node label alder room-\n\n\
KEY=VALUE sets a label, KEY- removes it; other labels are unchanged. Pending instances that require the new labels are \
then placed."
    )]
    Label(NodeLabelArgs),
    /// Rename a node; the name is kept even if the hostname of the machine changes
    #[command(after_help = "Examples:\n  waifuctl node rename alder birch\n\n\
Its instances stay on it. Pending instances pinned to the new name are then placed; those pinned to the old name stay \
pending.")]
    Rename(NodeRenameArgs),
    /// Remove a node that will not come back, and revoke its key; guests on it keep running
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  waifuctl node remove alder\n  waifuctl node remove alder --purge\n  waifuctl node remove alder --force --confirm-off\n\n\
A node that has instances is not removed: delete them first. Pending deletions on a node that is off are dropped with \
it. The subnet of the node stays reserved, since guests may still be running there; --purge, or `waifuctl node purge` \
later, releases it. A node that joins under the same name gets it back.\n\n\
--force --confirm-off removes a node whose machine is dead, with its instances and their disks. Each of them is then \
failed: `waifuctl recreate` creates it again elsewhere, with new, empty disks. Only you can know that the machine is off: \
if it runs, a recreated instance runs twice."
    )]
    Remove(NodeRemoveArgs),
    /// Release the subnet of a removed node
    #[command(after_help = "Example:\n  waifuctl node purge alder\n\n\
Do this only if none of its guests is running any more: their addresses are then given to others.")]
    Purge(NodePurgeArgs),
    /// Manage join tokens, which admit machines as nodes
    #[command(subcommand)]
    Token(JoinTokenCommand),
}

#[derive(Debug, Args)]
pub struct NodeArg {
    /// Name or id of the node
    #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct NodesArg {
    /// Names or ids of nodes
    #[arg(required = true, value_name = "NODE", add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct NodeDrainArgs {
    /// Name or id of the node
    #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    #[command(flatten)]
    pub instead: DrainInstead,
    /// Give the instances addresses of their new nodes' subnets [default: keep their addresses]
    #[arg(long)]
    pub new_address: bool,
    /// Wait until the node is empty
    #[arg(short, long)]
    pub wait: bool,
    /// Time limit of --wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
    pub timeout: Duration,
}

/// What is done instead of beginning a drain.
#[derive(Debug, Args)]
pub struct DrainInstead {
    /// Only show where the instances would move and which ones fit nowhere
    #[arg(long, conflicts_with_all = ["cancel", "wait"])]
    pub explain: bool,
    /// End the drain; the node stays cordoned, and moves that have begun go on
    #[arg(long, conflicts_with_all = ["new_address", "wait"])]
    pub cancel: bool,
}

#[derive(Debug, Args)]
pub struct NodePurgeArgs {
    /// Name or id of the removed node
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct NodeAddArgs {
    /// Name of the node, instead of the machine's hostname
    pub name: Option<Name>,
    /// Lifetime of the token, 1m to 168h
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
    pub expires: Duration,
    /// Print commands that save the script in a file first, so that you can read it before you run it
    #[arg(long)]
    pub read_first: bool,
    /// Wait until the machine has joined and is ready, or until the token expires. With --json, prints the token and then
    /// the node, one line each
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Args)]
pub struct ConfirmArgs {
    /// Names or ids of nodes
    #[arg(required_unless_present = "all", add = ArgValueCandidates::new(complete::nodes), value_name = "NODE", value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// Confirm all nodes that are not confirmed
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct NodeLabelArgs {
    /// Name or id of the node
    #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    #[command(flatten)]
    pub labels: LabelChanges,
}

#[derive(Debug, Args)]
pub struct NodeRenameArgs {
    /// Name or id of the node
    #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The new name
    pub new_name: Name,
}

#[derive(Debug, Args)]
pub struct NodeRemoveArgs {
    /// Name or id of the node
    #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Also release the node's subnet; use this only when none of its guests is running. Works for removed nodes too
    #[arg(long)]
    pub purge: bool,
    #[command(flatten)]
    pub force: ForceArgs,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
}

/// How a node is removed that still has instances.
#[derive(Debug, Args)]
pub struct ForceArgs {
    /// Also remove a node that has instances. They and their disks are lost
    #[arg(long, requires = "confirm_off")]
    pub force: bool,
    /// Your word that the machine is off and will not come back
    #[arg(long, requires = "force")]
    pub confirm_off: bool,
}
