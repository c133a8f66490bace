//! `waifuctl move`

use std::io::IsTerminal;

use waifud_api::client::ClientError;
use waifud_api::{Instance, MoveInstance};

use crate::cli::MoveArgs;
use crate::confirm::ask;
use crate::context::Context;
use crate::failure::Failure;
use crate::wait::{Deadline, or_detach, until_moved};

/// Moves an instance to another node, or cancels that.
pub async fn run(context: &Context, args: MoveArgs) -> Result<(), Failure> {
    let deadline = Deadline::begin(args.wait.timeout);
    if args.cancel {
        let kept = context.client.cancel_move(&args.name).await?;
        return context.printer.print(&kept, || canceled(&kept));
    }
    let before = context.client.instance(&args.name).await?;
    let mut request = MoveInstance {
        to: args.to.clone(),
        new_address: args.new_address,
    };
    let begun = match context.client.move_instance(&before, &request).await {
        Err(ClientError::Problem(problem))
            if problem.code == "new-address-needed" && std::io::stdin().is_terminal() =>
        {
            let name = before.name.as_str();
            let warning = format!("{}.", problem.title);
            ask(&format!("moving {name}"), &warning, name)?;
            request.new_address = true;
            context.client.move_instance(&before, &request).await
        }
        other => other,
    };
    let mut instance = begun?;
    if args.wait.wait {
        let name = instance.name.to_string();
        instance = Box::pin(or_detach(until_moved(context, instance, deadline), &name)).await?;
    }
    context.printer.print(&instance, || summary(&instance))
}

fn summary(instance: &Instance) -> String {
    let name = &instance.name;
    match &instance.moving {
        Some(moving) if moving.state.can_be_canceled() => format!(
            "{name} is being moved from {} to {}; follow it with: waifuctl move {name} --to {} --wait\n",
            moving.from, moving.to, moving.to
        ),
        _ => {
            let node = instance
                .status
                .node
                .as_ref()
                .map_or("-", |node| node.as_str());
            let address = crate::address::primary_address(&instance.status);
            let address = address.map_or_else(String::new, |address| format!(", {address}"));
            format!("{name} is on {node}{address}\n")
        }
    }
}

fn canceled(instance: &Instance) -> String {
    let node = instance
        .status
        .node
        .as_ref()
        .map_or("-", |node| node.as_str());
    format!(
        "the move of {} is canceled; it stays on {node}\n",
        instance.name
    )
}
