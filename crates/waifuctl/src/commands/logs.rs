//! `waifuctl logs`

use std::io::Write;

use futures::StreamExt;
use serde::Serialize;

use waifud_api::client::ClientError;

use super::why_evidence;
use crate::cli::LogsArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::guest_text::line;
use crate::terminal::write;
use crate::text::escape;

/// Maximum length of a line in bytes, since a guest may never end one.
const LINE_MAX: usize = 64 << 10;

/// One line as JSON: unmodified text of the guest.
#[derive(Serialize)]
struct Line<'a> {
    line: &'a str,
}

/// Prints the log of the console or of cloud-init.
pub async fn run(context: &Context, args: LogsArgs) -> Result<(), Failure> {
    if args.raw && context.printer.is_json() {
        return Err(
            Failure::input("usage", "--raw prints bytes, --json prints lines")
                .field("--raw")
                .hint("use only one of them"),
        );
    }
    let source = if args.cloud_init {
        "cloud-init"
    } else {
        "console"
    };
    let log = context
        .client
        .log(&args.name, source, args.lines, args.follow)
        .await;
    let log = match log {
        Err(error) if args.cloud_init && !args.raw && needs_an_agent(&error) => {
            return modules(context, &args.name, error).await;
        }
        other => other?,
    };
    let mut log = Box::pin(log);
    let mut kept = Vec::new();
    while let Some(bytes) = log.next().await {
        let bytes = bytes?;
        if args.raw {
            if !write(&bytes) {
                return Ok(());
            }
            continue;
        }
        kept.extend_from_slice(&bytes);
        while let Some(end) = end_of_line(&kept) {
            let one: Vec<u8> = kept.drain(..end).collect();
            print(context, &one)?;
        }
    }
    if !kept.is_empty() {
        print(context, &kept)?;
    }
    Ok(())
}

fn needs_an_agent(error: &ClientError) -> bool {
    let problem = error.problem();
    problem.is_some_and(|problem| matches!(problem.code.as_str(), "no-guest-agent" | "no-log"))
}

/// Without a guest agent, prints the modules that cloud-init reported.
async fn modules(context: &Context, name: &str, error: ClientError) -> Result<(), Failure> {
    let evidence = context.client.why(name).await?.evidence;
    let seen = evidence.map(|it| it.modules).unwrap_or_default();
    if seen.is_empty() {
        return Err(error.into());
    }
    let reason = error.problem().map_or("", |problem| &problem.title);
    context.printer.note(&format!(
        "note: {}; these are the modules that cloud-init reported",
        escape(reason)
    ));
    for module in &seen {
        let text = why_evidence::module(module);
        context.printer.print_line(module, || text)?;
    }
    Ok(())
}

fn end_of_line(bytes: &[u8]) -> Option<usize> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .map(|at| at + 1);
    end.or((bytes.len() >= LINE_MAX).then_some(LINE_MAX))
}

fn print(context: &Context, bytes: &[u8]) -> Result<(), Failure> {
    if context.printer.is_json() {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(['\r', '\n']);
        return context
            .printer
            .print_line(&Line { line: text }, String::new);
    }
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", line(bytes)).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|e| Failure::internal("output", "cannot write to stdout").cause(&e)),
    }
}
