//! `waifuctl edit`: edits user-data or the description. Changes are validated, shown, and sent only if the instance
//! has not changed in the meantime.

use std::path::Path;

use waifud_api::{CreateInstance, Instance, UpdateInstance};
use waifud_types::Secret;

use super::edit_spec;
use crate::cli::EditArgs;
use crate::context::Context;
use crate::description::{self, Source};
use crate::editor::{Draft, ask, difference, is_attended, require_terminal};
use crate::failure::Failure;
use crate::text::escape;
use crate::user_data;

/// The initial text for an instance without user-data.
const EMPTY: &str = "#cloud-config\n";

/// Edits, validates, shows, confirms and saves.
pub async fn run(context: &Context, args: EditArgs) -> Result<(), Failure> {
    if args.user_data.is_none() {
        require_terminal().map_err(|failure| {
            failure.hint(if args.spec {
                "to change an instance in a script, use waifuctl resize, label, publish or protect; or set VISUAL or EDITOR \
                 to a program that changes the file"
            } else {
                "in a script, pass the new text with --user-data FILE (- reads standard input), or set VISUAL or EDITOR to \
                 a program that changes the file"
            })
        })?;
    }
    let (have, generation) = context.client.description(&args.name).await?;
    let from_file = args.user_data.as_deref().map(user_data::read).transpose()?;
    let before = text_of(&have, args.spec)?;
    let (after, draft) = if let Some(text) = from_file {
        (text.into_inner(), None)
    } else {
        let shown = if before.is_empty() { EMPTY } else { &before };
        let draft = Draft::new(shown)?;
        match edited(&draft, &have, args.spec) {
            // The template text for an instance without user-data is not a change.
            Ok(text) if text == shown => (before.clone(), Some(draft)),
            Ok(text) => (text, Some(draft)),
            Err(failure) => return Err(draft.keep(failure)),
        }
    };
    let kept = |failure: Failure| match draft {
        Some(draft) => draft.keep(failure),
        None => failure,
    };
    let mut change = match change(&have, &after, args.spec) {
        Ok(change) => change,
        Err(failure) => return Err(kept(failure)),
    };
    change.re_run = args.re_run;
    if change == UpdateInstance::default() {
        context.printer.note("nothing changed");
        let instance = context.client.instance(&args.name).await?;
        return context
            .printer
            .print(&instance, || format!("{}: unchanged", instance.name));
    }
    let shown = difference(&before, &after);
    for line in shown.lines() {
        context.printer.note(&escape(line));
    }
    if is_attended() && !args.yes && !ask(&format!("Apply these changes to {}?", args.name)) {
        return Err(kept(Failure::input(
            "not-confirmed",
            "canceled; nothing was changed",
        )));
    }
    let id = args.name.as_str();
    let saved = context
        .client
        .update_instance(id, &change, Some(generation))
        .await;
    match saved {
        Ok(instance) => context
            .printer
            .print(&instance, || summary(&instance, &change)),
        Err(error) => Err(kept(Failure::from(error))),
    }
}

fn text_of(have: &CreateInstance, spec: bool) -> Result<String, Failure> {
    if spec {
        description::yaml(&description::from_request(have.clone()))
    } else {
        let text = have.user_data.as_ref().map(Secret::expose);
        Ok(text.cloned().unwrap_or_default())
    }
}

/// Runs the editor until the text is valid; without a terminal, once.
fn edited(draft: &Draft, have: &CreateInstance, spec: bool) -> Result<String, Failure> {
    loop {
        let text = draft.edit()?;
        match change(have, &text, spec) {
            Ok(_) => return Ok(text),
            Err(failure) if is_attended() => {
                failure.print(false);
                if !ask("Edit it again?") {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// The change that the edited text describes.
fn change(have: &CreateInstance, text: &str, spec: bool) -> Result<UpdateInstance, Failure> {
    if spec {
        let source = Source {
            text,
            base: Path::new(""),
        };
        return edit_spec::change(have, source);
    }
    user_data::check(text)?;
    let before = have.user_data.as_ref().map_or("", |t| t.expose().as_str());
    Ok(UpdateInstance {
        user_data: (text != before).then(|| Secret::new(text.to_owned())),
        ..UpdateInstance::default()
    })
}

fn summary(instance: &Instance, change: &UpdateInstance) -> String {
    let name = &instance.name;
    let mut effects = Vec::new();
    if change.user_data.is_some() {
        effects.push(if change.re_run {
            "the new user-data is read at the next start"
        } else {
            "the new user-data is read at the next start; modules that cloud-init runs once per instance (write_files, \
             runcmd, packages) are not repeated without --re-run"
        });
    }
    if change.re_run {
        effects.push("cloud-init treats the next start as the first boot, with new host keys");
    }
    if effects.is_empty() {
        format!("{name}: saved")
    } else {
        format!("{name}: {}", effects.join(", and "))
    }
}
