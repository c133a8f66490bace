//! `waifuctl ssh-proxy`

use crate::context::Context;
use crate::failure::Failure;
use crate::relay::{Ended, join, stream_closed, stream_lost};
use crate::stdout::ClosingStdout;

/// The `ProxyCommand` of ssh: connects standard input and output to port 22 of the guest.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let stream = context.client.open_stream(name, "ssh", None).await?;
    match join(stream, tokio::io::stdin(), ClosingStdout::default()).await {
        Ended::Done => Ok(()),
        Ended::Reset => Err(stream_closed(name, "the guest reset the connection")),
        Ended::Closed(reason) => Err(stream_closed(name, &reason)),
        Ended::Lost(reason) => Err(stream_lost(name, &reason)),
    }
}
