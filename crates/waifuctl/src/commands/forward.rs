//! `waifuctl forward`

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;

use crate::cli::ForwardArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::relay::{StreamTarget, bind, listen, shutdown_signal};

/// One port that leads to the guest.
#[derive(Serialize)]
struct Open {
    local: String,
    port: u16,
}

/// Listens on loopback until Ctrl-C; each connection is one stream to the guest.
pub async fn run(context: &Context, args: ForwardArgs) -> Result<(), Failure> {
    let instance = context.client.instance(&args.name).await?;
    let (name, state) = (&instance.name, instance.status.state);
    // As waifud says it of `ssh` and `console`, which open their stream at once.
    if !state.may_be_on() {
        return Err(Failure::input(
            "instance-not-running",
            format!("instance {name} is {state}: there is nothing to connect to"),
        )
        .hint(format!(
            "waifuctl start {name}; waifuctl why {name} tells more"
        )));
    }
    let mut listeners = Vec::new();
    for pair in &args.ports {
        listeners.push((bind(pair.local).await?, pair.remote));
    }
    let all = FuturesUnordered::new();
    for (listener, port) in listeners {
        let at = listener
            .local_addr()
            .map_err(|e| Failure::internal("listen", "the port can't be told").cause(&e))?;
        let open = Open {
            local: at.to_string(),
            port,
        };
        let name = &instance.name;
        context
            .printer
            .print_line(&open, || format!("{at} leads to port {port} of {name}"))?;
        let target = StreamTarget {
            instance: instance.id.to_string(),
            what: "forward",
            port: Some(port),
        };
        all.push(listen(context, listener, target));
    }
    context.printer.note("Ctrl-C ends it");
    let mut all = all;
    tokio::select! {
        ended = shutdown_signal() => ended,
        Some(failure) = all.next() => Err(failure),
    }
}
