//! `waifuctl ip`

use crate::context::Context;
use crate::failure::Failure;
use crate::wait::primary_address;

/// Prints the primary address, and nothing else, so that `$(waifuctl ip web)` works.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let instance = context.client.instance(name).await?;
    let address = primary_address(&instance.status).ok_or_else(|| {
        Failure::input(
            "no-address",
            format!("{name} has no address yet: it is {}", instance.status.state),
        )
        .hint(format!("waifuctl why {name}"))
    })?;
    context
        .printer
        .print(&instance.status.addresses, || address)
}
