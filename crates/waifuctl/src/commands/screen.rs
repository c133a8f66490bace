//! `waifuctl screen`

use std::io::ErrorKind;
use std::process::Stdio;

use serde::Serialize;
use tokio::process::{Child, Command};

use crate::cli::ScreenArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::relay::{StreamTarget, bind, listen, must_be_on, shutdown_signal};

/// The address of the screen.
#[derive(Serialize)]
struct Open {
    url: String,
}

/// Listens on loopback for RFB viewers until Ctrl-C or the end of the viewer.
pub async fn run(context: &Context, args: ScreenArgs) -> Result<(), Failure> {
    let instance = context.client.instance(&args.name).await?;
    must_be_on(&instance)?;
    let listener = bind(args.port).await?;
    let port = listener
        .local_addr()
        .map_err(|e| Failure::internal("listen", "cannot get the local port").cause(&e))?
        .port();
    let open = Open {
        url: format!("vnc://127.0.0.1:{port}"),
    };
    context.printer.print_line(&open, || open.url.clone())?;
    let target = StreamTarget {
        instance: instance.id.to_string(),
        service: "screen",
        port: None,
    };
    let listening = listen(context, listener, target);
    if args.viewer {
        let mut viewer = view(port)?;
        return tokio::select! {
            ended = viewer.wait() => ended
                .map(drop)
                .map_err(|e| Failure::internal("viewer", "cannot wait for the viewer").cause(&e)),
            ended = shutdown_signal() => ended,
            failure = listening => Err(failure),
        };
    }
    context
        .printer
        .note("press Ctrl-C to stop; --viewer starts a viewer");
    tokio::select! {
        ended = shutdown_signal() => ended,
        failure = listening => Err(failure),
    }
}

/// Starts the first installed viewer.
fn view(port: u16) -> Result<Child, Failure> {
    let viewers = [
        ("remote-viewer", format!("vnc://127.0.0.1:{port}")),
        // Two colons denote a port instead of a display number.
        ("vncviewer", format!("127.0.0.1::{port}")),
    ];
    for (program, argument) in viewers {
        let started = Command::new(program)
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        match started {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => {
                return other.map_err(|e| {
                    Failure::input("viewer", format!("cannot start {program}")).cause(&e)
                });
            }
        }
    }
    Err(Failure::input(
        "no-viewer",
        "neither remote-viewer nor vncviewer is installed",
    )
    .field("--viewer")
    .hint("install virt-viewer or tigervnc-viewer, or connect another viewer without --viewer"))
}
