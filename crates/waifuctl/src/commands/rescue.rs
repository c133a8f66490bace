//! `waifuctl rescue`

use tokio::time::Instant;
use waifud_api::client::ClientError;
use waifud_api::{Instance, UpdateInstance};
use waifud_types::{Reboot, RescueBegin, RescueOrder};

use super::power::{state, until_ready_again};
use crate::cli::RescueArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::settle::until_settled;
use crate::wait::or_detach;
use crate::{download, keys};

/// The template that an operator keeps for it.
const OWN: &str = "rescue";
/// The entry of the catalog that is taken where there is none: small, and knows every filesystem.
const SMALL: &str = "alpine-";

/// Boots another system with the instance's disks attached, or its own again.
pub async fn run(context: &Context, args: RescueArgs) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    let instance = context.client.instance(&args.name).await?;
    let id = instance.id.to_string();
    let change = |rescue| UpdateInstance {
        rescue: Some(rescue),
        reboot: args.force.then_some(Reboot::Force),
        ..UpdateInstance::default()
    };
    let mut told = if args.end {
        if instance.spec.rescue.is_none() {
            return Err(Failure::input(
                "not-rescued",
                format!("{} boots its own disk", instance.name),
            ));
        }
        context
            .client
            .update_instance(&id, &change(RescueOrder::End), None)
            .await?
    } else {
        let mut begin = RescueBegin {
            template: template(context, args.template).await?,
            ssh_keys: if args.ssh_key.is_empty() {
                keys::own()
            } else {
                keys::named(&args.ssh_key)?
            },
        };
        let order = change(RescueOrder::Begin(begin.clone()));
        match context.client.update_instance(&id, &order, None).await {
            Err(error) if is_unknown(&error) => {
                let undone = "nothing was changed; the same command again goes on from there";
                begin.template = download::missing(
                    context,
                    &begin.template,
                    error,
                    undone,
                    args.wait.then_some(deadline),
                )
                .await?;
                let order = change(RescueOrder::Begin(begin));
                context.client.update_instance(&id, &order, None).await?
            }
            told => told?,
        }
    };
    let mut outcome = Ok(());
    if args.wait {
        let name = told.name.to_string();
        let settled = async {
            told = until_settled(context, told.clone(), deadline).await?;
            if let Some(ready) = until_ready_again(context, &instance, &told, deadline).await? {
                told = ready;
            }
            Ok(())
        };
        outcome = or_detach(settled, &name).await;
    }
    context.printer.print(&told, || said(&told, args.wait))?;
    outcome
}

fn said(instance: &Instance, waited: bool) -> String {
    let name = &instance.name;
    match (&instance.spec.rescue, waited) {
        (None, false) => format!("{name}: told to boot its own disk again"),
        (None, true) => format!("{name}: {}", state(instance)),
        (Some(rescue), waited) => {
            let state = if waited {
                format!("{} with {}", instance.status.state, rescue.template)
            } else {
                format!("told to boot {}", rescue.template)
            };
            format!(
                "{name}: {state}; its own disk is /dev/vdb there\n\
                 then: waifuctl ssh {name} (or console), repair it, and waifuctl rescue {name} --end"
            )
        }
    }
}

async fn template(context: &Context, wanted: Option<String>) -> Result<String, Failure> {
    if let Some(wanted) = wanted {
        return Ok(wanted);
    }
    match context.client.template(OWN).await {
        Ok(_) => return Ok(OWN.to_owned()),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => {}
        Err(error) => return Err(error.into()),
    }
    let catalog = context.client.catalog().await?;
    let mut names = catalog.items.iter().map(|entry| entry.name.to_string());
    names.find(|name| name.starts_with(SMALL)).ok_or_else(|| {
        Failure::input("no-rescue-template", "there is no template called rescue")
            .hint("name one: --template NAME (waifuctl template list)")
    })
}

fn is_unknown(error: &ClientError) -> bool {
    error
        .problem()
        .is_some_and(|problem| problem.code == "unknown-template")
}
