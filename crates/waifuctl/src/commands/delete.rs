//! `waifuctl delete`

use std::time::Duration;

use serde::Serialize;
use waifud_api::Instance;
use waifud_api::client::{ClientError, Progress};

use crate::cli::DeleteArgs;
use crate::confirm::{ask, confirm};
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;
use crate::wait::{Deadline, or_detach, waiting_for};
use crate::{progress, select};

/// Maximum wait of one request. Afterwards the progress is updated; this also detects a restart of waifud.
const REQUEST_WAIT: Duration = Duration::from_secs(10);

/// The result of a deletion.
#[derive(Serialize)]
struct Deleted<'a> {
    name: &'a str,
    /// `deleted` or `deleting`.
    state: &'static str,
    /// The command that must be run first; null unless the deletion is held.
    held_until: Option<String>,
}

/// Deletes instances. All names are checked and confirmed before the first deletion, and all deletions are requested
/// before the first wait. Completed deletions are printed even if others fail.
pub async fn run(context: &Context, args: DeleteArgs) -> Result<(), Failure> {
    if args.unmanaged {
        let names = &args.which.names;
        return super::delete_unmanaged::run(context, names, args.node.as_deref(), args.yes).await;
    }
    let instances = select::instances(context, &args.which, args.ignore_missing).await?;
    if let Some(instance) = instances.iter().find(|one| one.spec.protected) {
        return Err(Failure::input(
            "protected",
            format!("instance {} is protected against deletion", instance.name),
        )
        .field("spec.protected")
        .hint(format!(
            "first run waifuctl protect {} --off",
            instance.name
        )));
    }
    if !args.yes {
        confirm_all(&instances, args.which.names.is_empty())?;
    }
    let mut results = Vec::new();
    let mut outcome = request_deletions(context, &instances, &mut results).await;
    if args.wait.wait && outcome.is_ok() {
        let deadline = Deadline::begin(args.wait.timeout);
        let all = select::names(&instances);
        outcome = or_detach(await_all(context, &instances, &mut results, deadline), &all).await;
    }
    if !results.is_empty() || context.printer.is_json() && outcome.is_ok() {
        context.printer.print(&results, || {
            let lines: Vec<_> = results.iter().map(Deleted::line).collect();
            lines.join("\n")
        })?;
    }
    outcome
}

impl Deleted<'_> {
    fn line(&self) -> String {
        match &self.held_until {
            Some(command) => format!(
                "{}: {}; held until you run {command}",
                self.name, self.state
            ),
            None => format!("{}: {}", self.name, self.state),
        }
    }
}

/// Asks for each name, or for the number of instances if they were selected.
fn confirm_all(instances: &[Instance], selected: bool) -> Result<(), Failure> {
    if !selected || instances.len() == 1 {
        for instance in instances {
            confirm("instance", instance.name.as_str())?;
        }
        return Ok(());
    }
    if instances.is_empty() {
        return Ok(());
    }
    let (count, names) = (instances.len().to_string(), select::names(instances));
    ask(
        &format!("destroying {count} instances ({names})"),
        &format!("This destroys {count} instances: {names}."),
        &count,
    )
}

/// Requests each deletion by id, so that the confirmed instance is deleted even if another one has its name now.
async fn request_deletions<'a>(
    context: &Context,
    instances: &'a [Instance],
    results: &mut Vec<Deleted<'a>>,
) -> Result<(), Failure> {
    for instance in instances {
        let gone = delete(context, instance, Duration::ZERO).await?;
        results.push(Deleted {
            name: instance.name.as_str(),
            state: if gone { "deleted" } else { "deleting" },
            held_until: None,
        });
        if !gone && let Some(last) = results.last_mut() {
            last.held_until = held(context, instance).await?;
        }
    }
    Ok(())
}

/// The command that must be run before the node deletes the instance: nodes delete nothing for an unconfirmed restored
/// database.
async fn held(context: &Context, instance: &Instance) -> Result<Option<String>, Failure> {
    let Some(node) = &instance.status.node else {
        return Ok(None);
    };
    match context.client.node(node.as_str()).await {
        Ok(node) if !node.confirmed => Ok(Some(format!("waifuctl node confirm {}", node.name))),
        Ok(_) => Ok(None),
        // The node was removed in the meantime, together with its instances.
        Err(ClientError::Problem(problem)) if problem.status == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn await_all(
    context: &Context,
    instances: &[Instance],
    results: &mut [Deleted<'_>],
    deadline: Deadline,
) -> Result<(), Failure> {
    let mut all_held = None;
    for (instance, result) in instances.iter().zip(results) {
        if let Some(command) = &result.held_until {
            all_held.get_or_insert_with(|| (instance.name.clone(), command.clone()));
            continue;
        }
        let spinner = progress::spinner(!context.printer.shows_progress());
        let node = instance.status.node.as_ref().map_or("-", |n| n.as_str());
        spinner.set_message(format!("{}: waiting for {node}", instance.name));
        while result.state != "deleted" {
            let left = deadline.left(&instance.status);
            match delete(context, instance, left.min(REQUEST_WAIT)).await {
                Ok(true) => result.state = "deleted",
                Ok(false) if left.is_zero() => {
                    return Err(Failure::deadline(format!(
                        "{} is not deleted yet; the deletion continues",
                        instance.name
                    ))
                    .hint(format!("waifuctl why {}", instance.name)));
                }
                // A waifud that stops ends its waits; the request is repeated.
                Err(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) | Ok(false)
                    if !left.is_zero() =>
                {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    if let Ok(now) = context.client.instance(&instance.id.to_string()).await {
                        let what = escape(&waiting_for(&now.status));
                        spinner.set_message(format!("{}: {what} on {node}", instance.name));
                    }
                }
                Ok(false) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    match all_held {
        None => Ok(()),
        Some((name, command)) => Err(Failure::input(
            "deletion-held",
            format!("the deletion of {name} is held until its node is confirmed, because the database was restored from a backup"),
        )
        .hint(command)),
    }
}

/// Deletes an instance; returns whether the deletion is complete.
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
