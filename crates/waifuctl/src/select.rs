//! Looks up the instances of a command before the first one is changed.

use waifud_api::Instance;
use waifud_api::client::ClientError;

use crate::cli::SelectArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;

/// Returns the named or selected instances, each once. Unknown names are an error or, with `ignore_missing`, skipped
/// with a note.
pub async fn instances(
    context: &Context,
    wanted: &SelectArgs,
    ignore_missing: bool,
) -> Result<Vec<Instance>, Failure> {
    if wanted.all || !wanted.selector.is_empty() {
        let mut found = pagination::list(async |query| context.client.instances(query).await)
            .await?
            .items;
        found.retain(|instance| wanted.selector.iter().all(|s| s.matches(&instance.labels)));
        if found.is_empty() {
            context.printer.note("no instances match");
        }
        return Ok(found);
    }
    let mut found: Vec<Instance> = Vec::new();
    for name in &wanted.names {
        match context.client.instance(name).await {
            Ok(instance) if found.iter().any(|known| known.id == instance.id) => {}
            Ok(instance) => found.push(instance),
            Err(ClientError::Problem(problem)) if ignore_missing && problem.status == 404 => {
                context.printer.note(&format!("{name}: does not exist"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// The names, for messages.
pub fn names(instances: &[Instance]) -> String {
    let names: Vec<_> = instances.iter().map(|i| i.name.as_str()).collect();
    names.join(", ")
}
