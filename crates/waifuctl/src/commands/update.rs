//! `waifuctl protect`: one field of the spec.

use waifud_api::{Instance, UpdateInstance};

use crate::context::Context;
use crate::failure::Failure;

/// Refuses deletion, or allows it again.
pub async fn protect(context: &Context, name: &str, protected: bool) -> Result<(), Failure> {
    let change = UpdateInstance {
        protected: Some(protected),
        ..UpdateInstance::default()
    };
    update(context, name, &change, |instance| {
        let word = if instance.spec.protected {
            "protected"
        } else {
            "no longer protected"
        };
        format!("{}: {word}", instance.name)
    })
    .await
}

async fn update(
    context: &Context,
    name: &str,
    change: &UpdateInstance,
    say: impl FnOnce(&Instance) -> String,
) -> Result<(), Failure> {
    let instance = context.client.update_instance(name, change, None).await?;
    context.printer.print(&instance, || say(&instance))
}
