//! `waifuctl start`, `stop`, `reboot` and `resize`.

use tokio::time::Instant;
use waifud_api::{Instance, UpdateInstance};
use waifud_types::Reboot;

use crate::cli::{ResizeArgs, StartArgs, StopArgs};
use crate::context::Context;
use crate::failure::Failure;
use crate::settle::until_settled;
use crate::wait::or_detach;

/// Wants them to run.
pub async fn start(context: &Context, args: StartArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        run: Some(true),
        ..UpdateInstance::default()
    };
    order(context, args, &change, "told to start").await
}

/// Wants them to be off.
pub async fn stop(context: &Context, args: StopArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        run: Some(false),
        force: args.force,
        ..UpdateInstance::default()
    };
    let told = if args.force {
        "its plug is pulled"
    } else {
        "told to shut down"
    };
    order(context, args.which, &change, told).await
}

/// Wants each to go off and come back, once.
pub async fn reboot(context: &Context, args: StopArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        reboot: Some(how(args.force)),
        ..UpdateInstance::default()
    };
    order(context, args.which, &change, "told to reboot").await
}

/// Changes sizes, with `--restart` by a reboot in the same order.
pub async fn resize(context: &Context, args: ResizeArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        cpus: args.cpus,
        memory_bytes: args.memory,
        disk_bytes: args.disk,
        reboot: args.restart.then_some(Reboot::Clean),
        ..UpdateInstance::default()
    };
    let which = StartArgs {
        names: vec![args.name],
        wait: args.wait,
        timeout: args.timeout,
    };
    let needs_restart = (args.cpus.is_some() || args.memory.is_some()) && !args.restart;
    let told = if needs_restart {
        "resized; CPUs and memory of a running guest count from its next start on (waifuctl reboot)"
    } else {
        "resized"
    };
    order(context, which, &change, told).await
}

fn how(force: bool) -> Reboot {
    if force { Reboot::Force } else { Reboot::Clean }
}

/// Changes each. All names are looked up before the first is touched, and all are ordered before the first is waited
/// for. What was done is printed also when the rest fails.
async fn order(
    context: &Context,
    args: StartArgs,
    change: &UpdateInstance,
    told: &str,
) -> Result<(), Failure> {
    let mut found: Vec<Instance> = Vec::new();
    for name in &args.names {
        let instance = context.client.instance(name).await?;
        if !found.iter().any(|known| known.id == instance.id) {
            found.push(instance);
        }
    }
    let mut done = Vec::new();
    let mut outcome = Ok(());
    for instance in &found {
        let id = instance.id.to_string();
        match context.client.update_instance(&id, change, None).await {
            Ok(instance) => done.push(instance),
            Err(error) => {
                outcome = Err(error.into());
                break;
            }
        }
    }
    if args.wait && outcome.is_ok() {
        let deadline = Instant::now() + args.timeout;
        let all = args.names.join(" ");
        outcome = or_detach(await_all(context, &mut done, deadline), &all).await;
    }
    let line = |instance: &Instance| {
        if args.wait {
            format!("{}: {}", instance.name, instance.status.state)
        } else {
            format!("{}: {told}", instance.name)
        }
    };
    match done.as_slice() {
        [] => {}
        [one] if found.len() == 1 => context.printer.print(one, || line(one))?,
        many => context.printer.print(&many, || {
            many.iter().map(line).collect::<Vec<_>>().join("\n")
        })?,
    }
    outcome
}

async fn await_all(
    context: &Context,
    instances: &mut [Instance],
    deadline: Instant,
) -> Result<(), Failure> {
    for instance in instances {
        *instance = until_settled(context, instance.clone(), deadline).await?;
    }
    Ok(())
}
