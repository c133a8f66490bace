//! `waifuctl label`

use waifud_api::UpdateInstance;

use crate::cli::LabelArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::labels;
use crate::text::escape;

/// Sets and removes labels; those that are not named stay.
pub async fn run(context: &Context, args: LabelArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        labels: labels::changes(&args.labels.changes)?,
        ..UpdateInstance::default()
    };
    let instance = context
        .client
        .update_instance(&args.name, &change, None)
        .await?;
    context.printer.print(&instance, || {
        let labels: Vec<_> = instance
            .labels
            .iter()
            .map(|(key, value)| escape(&format!("{key}={value}")))
            .collect();
        if labels.is_empty() {
            format!("{}: no labels", instance.name)
        } else {
            format!("{}: {}", instance.name, labels.join(" "))
        }
    })
}
