//! The command-line client.
//!
//! `cli/` defines the arguments; each command is one file in `commands/`. Data goes to stdout, everything else to stderr.
//! Exit codes: 0 success, 1 invalid input, state or permission, 2 internal error or waifud is unreachable, 3 the deadline
//! of a wait passed.

mod address;
mod cli;
mod columns;
mod commands;
mod complete;
mod concurrent_change;
mod confirm;
mod context;
mod contexts;
mod description;
mod download;
mod editor;
mod failure;
mod foreground;
mod guest_text;
mod hint;
mod host_keys;
mod keys;
mod known_hosts;
mod labels;
mod network_args;
mod pagination;
mod password_prompt;
mod pools;
mod printer;
mod progress;
mod published_ports;
mod relay;
mod select;
mod selector;
mod ssh_arguments;
mod ssh_hints;
mod ssh_host;
mod ssh_options;
mod stdout;
mod terminal;
mod text;
mod unmanaged;
mod update_many;
mod user_data;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::Cli;
use crate::context::Context;

fn main() -> ExitCode {
    // Ends here when a shell asks for completions.
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let cli = match Cli::try_parse_from(ssh_arguments::mark(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
                let failure = failure::Failure::usage(&error);
                failure.print(true);
                return ExitCode::from(failure.exit_code());
            }
            let _stdout_or_stderr_gone = error.print();
            if let Some(hint) = failure::usage_hint(&error) {
                eprintln!("  hint: {hint}");
            }
            // Help and version are answers; anything else is a mistake in what was typed.
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let json = cli.global.json;
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            return ExitCode::from(2);
        }
    };
    let outcome = runtime.block_on(run(cli));
    // A read that still waits for stdin must not delay the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Result<(), failure::Failure> {
    let cli = match commands::offline(cli).await {
        Ok(done) => return done,
        Err(cli) => cli,
    };
    let context = Context::new(&cli.global)?;
    commands::run(&context, cli.command).await
}
