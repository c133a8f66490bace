//! `waifuctl ssh-proxy`

use crate::context::Context;
use crate::failure::Failure;
use crate::relay::{Ended, join, stream_failure};
use crate::stdout::ClosingStdout;

/// What ssh runs instead of connecting by itself: standard input and output are the guest's port 22.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let stream = context.client.open_stream(name, "ssh", None).await?;
    match join(stream, tokio::io::stdin(), ClosingStdout::default()).await {
        Ended::Done => Ok(()),
        Ended::Reset => Err(stream_failure(name, "the guest reset the connection")),
        Ended::Closed(reason) => Err(stream_failure(name, &reason)),
    }
}
