//! What can be typed about nodes.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;

use waifud_types::Name;

use crate::cli::ConfirmArgs;
use crate::cli_token::JoinTokenCommand;
use crate::complete;

/// `node …`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    #[command(visible_alias = "ls")]
    List,
    /// Show one node in full
    Show(NodeArg),
    /// Say that waifud's restored database is the right one for nodes: until then they destroy nothing
    #[command(
        after_help = "Examples:\n  waifuctl node confirm alder\n  waifuctl node confirm --all --yes\n\nFirst adopt what is unmanaged and wanted, and delete what was deleted before."
    )]
    Confirm(ConfirmArgs),
    /// Set or remove labels of a node; create --require asks for them
    #[command(
        after_help = "Examples:\n  waifuctl node label alder disk=ssd room=cellar\n  waifuctl node label alder room-\n\nKEY=VALUE sets, KEY- removes; other labels stay. Instances that waited for such a node are placed."
    )]
    Label(NodeLabelArgs),
    /// Give a node another name; it keeps it, whatever its machine calls itself
    #[command(
        after_help = "Examples:\n  waifuctl node rename alder birch\n\nInstances on it stay. Those that wait for a node of the new name are placed; what is pinned to the old one waits."
    )]
    Rename(NodeRenameArgs),
    /// Forget a node that will not come back, and its key; what runs there runs on
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  waifuctl node remove alder\n  waifuctl node remove alder --purge\n\nRefused while it has instances: delete them first. On a node that is off, those that were deleted are forgotten with\nit. Nobody is given addresses of its subnet before --purge, which may be said later: guests may still run there."
    )]
    Remove(NodeRemoveArgs),
    /// Tokens that let machines in as nodes
    #[command(subcommand)]
    Token(JoinTokenCommand),
}

/// One node.
#[derive(Debug, Args)]
pub struct NodeArg {
    /// Name or id of the node
    #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

/// `node label`.
#[derive(Debug, Args)]
pub struct NodeLabelArgs {
    /// Name or id of the node
    #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    pub changes: Vec<String>,
}

/// `node rename`.
#[derive(Debug, Args)]
pub struct NodeRenameArgs {
    /// Its name or id
    #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The name that it gets
    pub new_name: Name,
}

/// `node remove`.
#[derive(Debug, Args)]
pub struct NodeRemoveArgs {
    /// Name or id of the node
    #[arg(add = ArgValueCandidates::new(complete::nodes), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Let others have its subnet: nothing of it runs any more. Also of a node that was removed before
    #[arg(long)]
    pub purge: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
