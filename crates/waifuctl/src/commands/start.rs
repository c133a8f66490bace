//! `waifuctl start`

use waifud_api::UpdateInstance;

use crate::cli::StartArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::update_many::update_many;

/// Starts instances.
pub async fn run(context: &Context, args: StartArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        run: Some(true),
        ..UpdateInstance::default()
    };
    update_many(context, &args.select, args.wait, &change, &|_| {
        "starting".to_owned()
    })
    .await
}
