//! `waifuctl stop`

use waifud_api::UpdateInstance;

use crate::cli::StopArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::update_many::update_many;

/// Wants them to be off.
pub async fn run(context: &Context, args: StopArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        run: Some(false),
        force: args.force,
        ..UpdateInstance::default()
    };
    let told = if args.force {
        "told to power off at once"
    } else {
        "told to shut down"
    };
    update_many(
        context,
        &args.which.select,
        args.which.wait,
        &change,
        &|_| told.to_owned(),
    )
    .await
}
