//! `waifuctl forward`

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;

use crate::cli::ForwardArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::relay::{StreamTarget, bind, listen, must_be_on, shutdown_signal};

/// A forwarded port.
#[derive(Serialize)]
struct Open {
    local: String,
    port: u16,
}

/// Listens on loopback until Ctrl-C; each connection opens a stream to the guest.
pub async fn run(context: &Context, args: ForwardArgs) -> Result<(), Failure> {
    let instance = context.client.instance(&args.name).await?;
    must_be_on(&instance)?;
    let mut listeners = Vec::new();
    for pair in &args.ports {
        listeners.push((bind(pair.local).await?, pair.remote));
    }
    let all = FuturesUnordered::new();
    for (listener, port) in listeners {
        let at = listener
            .local_addr()
            .map_err(|e| Failure::internal("listen", "cannot get the local port").cause(&e))?;
        let open = Open {
            local: at.to_string(),
            port,
        };
        let name = &instance.name;
        context.printer.print_line(&open, || {
            format!("forwarding {at} to port {port} of {name}")
        })?;
        let target = StreamTarget {
            instance: instance.id.to_string(),
            service: "forward",
            port: Some(port),
        };
        all.push(listen(context, listener, target));
    }
    context.printer.note("press Ctrl-C to stop");
    let mut all = all;
    tokio::select! {
        ended = shutdown_signal() => ended,
        Some(failure) = all.next() => Err(failure),
    }
}
