//! `waifuctl label`

use waifud_api::UpdateInstance;

use crate::cli::LabelArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::labels;

/// Sets and removes labels; others are unchanged.
pub async fn run(context: &Context, args: LabelArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        labels: labels::changes(&args.labels.changes)?,
        ..UpdateInstance::default()
    };
    let instance = context
        .client
        .update_instance(&args.name, &change, None)
        .await?;
    let summary = labels::summary(instance.name.as_str(), &instance.labels);
    context.printer.print(&instance, || summary)
}
