//! `waifuctl node …`

mod add;
mod confirm;
mod cordon;
mod drain;
mod label;
mod list;
mod purge;
mod remove;
mod rename;
mod show;
mod token;

use waifud_types::ByteSize;

use crate::cli::NodeCommand;
use crate::context::Context;
use crate::failure::Failure;

/// Runs one of the node commands.
pub async fn run(context: &Context, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List => list::run(context).await,
        NodeCommand::Show(args) => show::run(context, &args.name).await,
        NodeCommand::Add(args) => add::run(context, args).await,
        NodeCommand::Cordon(args) => cordon::run(context, args, true).await,
        NodeCommand::Uncordon(args) => cordon::run(context, args, false).await,
        NodeCommand::Drain(args) => drain::run(context, args).await,
        NodeCommand::Confirm(args) => confirm::run(context, args).await,
        NodeCommand::Label(args) => label::run(context, args).await,
        NodeCommand::Rename(args) => rename::run(context, args).await,
        NodeCommand::Remove(args) => remove::run(context, args).await,
        NodeCommand::Purge(args) => purge::run(context, args).await,
        NodeCommand::Token(command) => token::run(context, command).await,
    }
}

/// Formats zero as `0` instead of `0B`.
fn zero_or(size: ByteSize) -> String {
    if size.bytes() == 0 {
        "0".to_owned()
    } else {
        size.to_string()
    }
}
