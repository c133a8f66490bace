//! `waifuctl console`

use std::io::IsTerminal as _;

use bytes::Bytes;
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use waifud_api::client::{ClientStream, StreamEnd};

use crate::cli::ConsoleArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::guest_text::Filter;
use crate::relay::{stream_closed, stream_lost};
use crate::terminal::{Raw, typed, write};

/// Ctrl-].
const DISCONNECT_KEY: u8 = 0x1d;

/// Shows the last lines of the console, then connects it to the terminal until Ctrl-] or its end. Without a terminal, it
/// sends standard input and then shows the output until the console ends or waifuctl is interrupted.
pub async fn run(context: &Context, args: ConsoleArgs) -> Result<(), Failure> {
    let name = &args.name;
    let stream = context.client.open_stream(name, "console", None).await?;
    let mut filter = (!args.raw).then(Filter::default);
    if args.lines > 0 {
        show_last(context, name, args.lines, &mut filter).await?;
    }
    context.printer.note(&format!(
        "connected to the console of {name}; {}",
        how_it_ends(std::io::stdin().is_terminal())
    ));
    let mut interrupted = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(no_signals)?;
    let raw = Raw::enter()?;
    let ended = tokio::select! {
        ended = join(stream, &mut filter) => ended,
        _ = interrupted.recv() => StreamEnd::Done,
        _ = hung_up.recv() => StreamEnd::Done,
    };
    // Restores the terminal before the message is printed.
    drop(raw);
    match ended {
        StreamEnd::Done | StreamEnd::Finished | StreamEnd::Reset => {
            context.printer.note("\ndisconnected from the console");
            Ok(())
        }
        StreamEnd::Closed(reason) => Err(stream_closed(name, &reason)),
        StreamEnd::Lost(reason) => Err(stream_lost(name, &reason)),
    }
}

fn how_it_ends(at_a_terminal: bool) -> &'static str {
    if at_a_terminal {
        "Ctrl-] disconnects"
    } else {
        "standard input is not a terminal: the output is shown until the console closes or waifuctl is interrupted"
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that map_err needs"
)]
fn no_signals(error: std::io::Error) -> Failure {
    Failure::internal("signals", "cannot install signal handlers").cause(&error)
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

/// Returns when the user disconnects or the stream ends.
async fn join(stream: ClientStream, filter: &mut Option<Filter>) -> StreamEnd {
    let ClientStream { mut to, mut from } = stream;
    let mut keys = typed();
    let mut at_end = false;
    loop {
        tokio::select! {
            bytes = from.next() => match bytes {
                Ok(bytes) => if !write(&shown(filter, &bytes)) {
                    return StreamEnd::Done;
                },
                Err(end) => return end,
            },
            typed = keys.recv(), if !at_end => {
                // At the end of stdin, the output of the guest is still shown.
                let Some(typed) = typed else {
                    at_end = true;
                    continue;
                };
                let leave = typed.iter().position(|byte| *byte == DISCONNECT_KEY);
                let bytes = typed.get(..leave.unwrap_or(typed.len())).unwrap_or_default();
                if let Err(end) = to.send(Bytes::copy_from_slice(bytes)).await {
                    return end;
                }
                if leave.is_some() {
                    to.close().await;
                    return StreamEnd::Done;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::how_it_ends;

    #[test]
    fn without_a_terminal_the_note_and_the_help_say_until_when_the_output_is_shown() {
        assert!(how_it_ends(true).contains("Ctrl-]"));
        let note = how_it_ends(false);
        assert!(!note.contains("Ctrl-]"), "{note}");
        let cli = crate::cli::Cli::command();
        let console = cli.find_subcommand("console").unwrap();
        let help = console.get_after_help().unwrap().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let until = "until the console closes or waifuctl is interrupted";
        assert!(note.contains(until) && help.contains(until), "{help}");
        assert!(help.contains("waifuctl logs --follow"), "{help}");
    }
}
