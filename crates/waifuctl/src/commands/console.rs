//! `waifuctl console`

use bytes::Bytes;
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use waifud_api::client::{ClientStream, StreamEnd};

use crate::cli::ConsoleArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::guest_text::Filter;
use crate::relay::stream_failure;
use crate::terminal::{Raw, typed, write};

/// Ctrl-].
const LEAVE: u8 = 0x1d;

/// Shows the last lines of the console, then joins it with the terminal until Ctrl-] or its end.
pub async fn run(context: &Context, args: ConsoleArgs) -> Result<(), Failure> {
    let name = &args.name;
    let stream = context.client.open_stream(name, "console", None).await?;
    let mut filter = (!args.raw).then(Filter::default);
    if args.lines > 0 {
        show_last(context, name, args.lines, &mut filter).await?;
    }
    context.printer.note(&format!(
        "connected to the console of {name}; Ctrl-] leaves"
    ));
    let mut interrupted = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(no_signals)?;
    let raw = Raw::enter()?;
    let ended = tokio::select! {
        ended = join(stream, &mut filter) => ended,
        _ = interrupted.recv() => Ok(()),
        _ = hung_up.recv() => Ok(()),
    };
    // Before anything is printed: the message is for the terminal as it was.
    drop(raw);
    match ended {
        Ok(()) => {
            context.printer.note("\nleft the console");
            Ok(())
        }
        Err(reason) => Err(stream_failure(name, &reason)),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "so that it fits into map_err"
)]
fn no_signals(error: std::io::Error) -> Failure {
    Failure::internal("signals", "signals can't be waited for").cause(&error)
}

async fn show_last(
    context: &Context,
    name: &str,
    lines: u32,
    filter: &mut Option<Filter>,
) -> Result<(), Failure> {
    let mut log = Box::pin(context.client.log(name, "console", lines, false).await?);
    while let Some(bytes) = log.next().await {
        write(&shown(filter, &bytes?));
    }
    Ok(())
}

fn shown(filter: &mut Option<Filter>, bytes: &[u8]) -> Vec<u8> {
    match filter {
        Some(filter) => filter.pass(bytes),
        None => bytes.to_vec(),
    }
}

/// Ends in order when the person leaves or the guest's side ends; else with waifud's reason.
async fn join(stream: ClientStream, filter: &mut Option<Filter>) -> Result<(), String> {
    let ClientStream { mut to, mut from } = stream;
    let mut keys = typed();
    let mut at_end = false;
    loop {
        tokio::select! {
            bytes = from.next() => match bytes {
                Ok(bytes) => if !write(&shown(filter, &bytes)) {
                    return Ok(());
                },
                Err(StreamEnd::Done | StreamEnd::Finished | StreamEnd::Reset) => return Ok(()),
                Err(StreamEnd::Closed(reason)) => return Err(reason),
            },
            typed = keys.recv(), if !at_end => {
                // The end of stdin is no wish to leave: what the guest says is still shown.
                let Some(typed) = typed else {
                    at_end = true;
                    continue;
                };
                let leave = typed.iter().position(|byte| *byte == LEAVE);
                let bytes = typed.get(..leave.unwrap_or(typed.len())).unwrap_or_default();
                if let Err(StreamEnd::Closed(reason)) = to.send(Bytes::copy_from_slice(bytes)).await {
                    return Err(reason);
                }
                if leave.is_some() {
                    to.close().await;
                    return Ok(());
                }
            }
        }
    }
}
