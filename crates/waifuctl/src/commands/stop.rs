//! `waifuctl stop`

use waifud_api::UpdateInstance;

use crate::cli::StopArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::update_many::update_many;

/// Stops instances.
pub async fn run(context: &Context, args: StopArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        run: Some(false),
        force: args.force,
        ..UpdateInstance::default()
    };
    let text = if args.force {
        "powering off"
    } else {
        "shutting down"
    };
    update_many(
        context,
        &args.which.select,
        args.which.wait,
        &change,
        &|_| text.to_owned(),
    )
    .await
}
