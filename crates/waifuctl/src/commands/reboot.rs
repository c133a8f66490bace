//! `waifuctl reboot`

use waifud_api::UpdateInstance;
use waifud_types::Reboot;

use crate::cli::StopArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::update_many::update_many;

/// Reboots instances.
pub async fn run(context: &Context, args: StopArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        reboot: Some(how(args.force)),
        ..UpdateInstance::default()
    };
    update_many(
        context,
        &args.which.select,
        args.which.wait,
        &change,
        &|_| "rebooting".to_owned(),
    )
    .await
}

fn how(force: bool) -> Reboot {
    if force { Reboot::Force } else { Reboot::Clean }
}
