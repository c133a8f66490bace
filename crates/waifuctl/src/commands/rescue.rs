//! `waifuctl rescue`

use waifud_api::client::ClientError;
use waifud_api::{Instance, UpdateInstance};
use waifud_types::status::CloudInitState;
use waifud_types::{Reboot, RescueBegin, RescueOrder};

use crate::cli::{RescueArgs, WaitFor};
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;
use crate::update_many::state;
use crate::wait::{
    Deadline, cannot_go_on, or_detach, until_applied, until_reached, until_ready_again,
};
use crate::{download, keys};

/// The preferred template.
const OWN: &str = "rescue";
/// The fallback from the catalog: small, with support for common filesystems.
const SMALL: &str = "alpine-";

/// Boots a rescue system with the instance's disks attached, or the instance's own disk again.
pub async fn run(context: &Context, args: RescueArgs) -> Result<(), Failure> {
    let deadline = Deadline::begin(args.wait.timeout);
    let before = context.client.instance(&args.name).await?;
    let id = before.id.to_string();
    let change = |rescue| UpdateInstance {
        rescue: Some(rescue),
        reboot: args.force.then_some(Reboot::Force),
        ..UpdateInstance::default()
    };
    let mut instance = if args.end {
        if before.spec.rescue.is_none() {
            return Err(Failure::input(
                "not-rescued",
                format!("{} is not in rescue mode", before.name),
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
                let undone = "nothing was changed; run the same command again to continue";
                begin.template = download::missing(
                    context,
                    &begin.template,
                    error,
                    undone,
                    args.wait.wait.then_some(deadline.at()),
                )
                .await?;
                let order = change(RescueOrder::Begin(begin));
                context.client.update_instance(&id, &order, None).await?
            }
            updated => updated?,
        }
    };
    let mut outcome = Ok(());
    if args.wait.wait {
        let name = instance.name.to_string();
        let applied = async {
            instance = until_applied(context, instance.clone(), deadline).await?;
            let booted = if args.end {
                until_ready_again(context, &before, &instance, deadline).await?
            } else {
                // The rescue system accepts a login, whatever the result of its cloud-init is.
                let ready = WaitFor::Ready;
                let booted = until_reached(context, &id, ready, deadline, cannot_go_on).await?;
                booted.map(check_rescue).transpose()?
            };
            if let Some(booted) = booted {
                instance = booted;
            }
            Ok(())
        };
        outcome = Box::pin(or_detach(applied, &name)).await;
    }
    context
        .printer
        .print(&instance, || summary(&instance, args.wait.wait))?;
    outcome
}

/// Fails if it cannot be known whether cloud-init in the rescue system has finished.
fn check_rescue(instance: Instance) -> Result<Instance, Failure> {
    let cloud_init = &instance.status.cloud_init;
    let because = cloud_init.unknown_because.as_ref();
    match because.filter(|_| cloud_init.state == CloudInitState::Unknown) {
        None => Ok(instance),
        Some(because) => Err(Failure::input(
            "cloud-init-unknown",
            format!(
                "cannot determine whether cloud-init in the rescue system of {} has finished: {}",
                instance.name,
                escape(because)
            ),
        )
        .hint(format!(
            "the VM is running, and waifuctl console {} shows its console; SSH keys are installed by cloud-init",
            instance.name
        ))),
    }
}

fn summary(instance: &Instance, waited: bool) -> String {
    let name = &instance.name;
    match (&instance.spec.rescue, waited) {
        (None, false) => format!("{name}: booting from its own disk again"),
        (None, true) => format!("{name}: {}", state(instance)),
        (Some(rescue), waited) => {
            let state = if waited {
                format!("{} with {}", instance.status.state, rescue.template)
            } else {
                format!("booting {}", rescue.template)
            };
            format!(
                "{name}: {state}; in the rescue system, its own disk is /dev/vdb\n\
                 next: log in with waifuctl ssh {name} (or console), repair the disk, then run waifuctl rescue {name} --end"
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
        Failure::input("no-rescue-template", "there is no template named rescue")
            .hint("choose a template with --template NAME; waifuctl template list shows them")
    })
}

fn is_unknown(error: &ClientError) -> bool {
    error
        .problem()
        .is_some_and(|problem| problem.code == "unknown-template")
}
