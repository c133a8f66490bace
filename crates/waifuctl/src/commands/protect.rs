//! `waifuctl protect`

use waifud_api::UpdateInstance;

use crate::cli::ProtectArgs;
use crate::context::Context;
use crate::failure::Failure;

/// Protects an instance against deletion, or removes the protection.
pub async fn run(context: &Context, args: ProtectArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        protected: Some(!args.off),
        ..UpdateInstance::default()
    };
    let updated = context.client.update_instance(&args.name, &change, None);
    let instance = updated.await?;
    context.printer.print(&instance, || {
        let state = if instance.spec.protected {
            "protected"
        } else {
            "not protected"
        };
        format!("{}: {state}", instance.name)
    })
}
