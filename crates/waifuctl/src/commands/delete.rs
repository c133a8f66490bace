//! `waifuctl delete`

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use waifud_api::Instance;
use waifud_api::client::{ClientError, Progress};

use crate::cli::DeleteArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::names::confirm;
use crate::wait::or_detach;

/// One request waits no longer than this, so that a restart of waifud is noticed and lived through.
const WAIT_AT_ONCE: Duration = Duration::from_mins(1);

/// What became of one deletion.
#[derive(Serialize)]
struct Deleted<'a> {
    name: &'a str,
    /// `deleted` or `deleting`.
    state: &'static str,
}

/// Deletes instances. All names are checked and confirmed before the first is touched, and all are ordered before the
/// first is waited for. What was done is printed also when the rest fails.
pub async fn run(context: &Context, args: DeleteArgs) -> Result<(), Failure> {
    if args.unclaimed {
        return super::unclaimed::delete(context, &args.names, args.node.as_deref(), args.yes)
            .await;
    }
    let mut instances: Vec<Instance> = Vec::new();
    for name in &args.names {
        let instance = context.client.instance(name).await?;
        if instances.iter().any(|known| known.id == instance.id) {
            continue;
        }
        if instance.spec.protected {
            return Err(Failure::input(
                "protected",
                format!("instance {} is protected against deletion", instance.name),
            )
            .field("spec.protected")
            .hint(format!(
                "waifuctl protect {} --off, then delete it",
                instance.name
            )));
        }
        if !args.yes {
            confirm("instance", instance.name.as_str())?;
        }
        instances.push(instance);
    }
    let mut results = Vec::new();
    let mut outcome = order(context, &instances, &mut results).await;
    if args.wait && outcome.is_ok() {
        let deadline = Instant::now() + args.timeout;
        let all = args.names.join(" ");
        outcome = or_detach(await_all(context, &instances, &mut results, deadline), &all).await;
    }
    if !results.is_empty() {
        context.printer.print(&results, || {
            results
                .iter()
                .map(|r| format!("{}: {}", r.name, r.state))
                .collect::<Vec<_>>()
                .join("\n")
        })?;
    }
    outcome
}

/// Orders each deletion, by id: it is the instance that was confirmed, whoever has its name by now.
async fn order<'a>(
    context: &Context,
    instances: &'a [Instance],
    results: &mut Vec<Deleted<'a>>,
) -> Result<(), Failure> {
    for instance in instances {
        let gone = delete(context, instance, Duration::ZERO).await?;
        results.push(Deleted {
            name: instance.name.as_str(),
            state: if gone { "deleted" } else { "deleting" },
        });
    }
    Ok(())
}

async fn await_all(
    context: &Context,
    instances: &[Instance],
    results: &mut [Deleted<'_>],
    deadline: Instant,
) -> Result<(), Failure> {
    for (instance, result) in instances.iter().zip(results) {
        while result.state != "deleted" {
            let left = deadline.saturating_duration_since(Instant::now());
            match delete(context, instance, left.min(WAIT_AT_ONCE)).await {
                Ok(true) => result.state = "deleted",
                Ok(false) if left.is_zero() => {
                    return Err(Failure::deadline(format!(
                        "{} is not gone yet; the work goes on",
                        instance.name
                    ))
                    .hint(format!("waifuctl why {}", instance.name)));
                }
                // A waifud that stops sends who waits away; the next one is asked.
                Err(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) | Ok(false)
                    if !left.is_zero() =>
                {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                Ok(false) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Whether nothing of it is left.
async fn delete(
    context: &Context,
    instance: &Instance,
    wait: Duration,
) -> Result<bool, ClientError> {
    match context
        .client
        .delete_instance(&instance.id.to_string(), wait)
        .await
    {
        Ok(progress) => Ok(progress == Progress::Done),
        Err(ClientError::Problem(problem)) if problem.status == 404 => Ok(true),
        Err(error) => Err(error),
    }
}
