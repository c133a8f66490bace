//! What the `main` of each daemon does with its command line and its result.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use crate::error;

/// Parses the command line, runs the program, and prints its error. Invalid arguments and errors of the program exit with 1;
/// `--help` and `--version` with 0.
pub fn run<A, E>(program: impl FnOnce(A) -> Result<(), E>) -> ExitCode
where
    A: Parser,
    E: AsRef<dyn Error + Send + Sync + 'static>,
{
    let arguments = match A::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _nowhere_to_say_it = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match program(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not be started yet, so this is printed directly.
            error::print(error.as_ref());
            ExitCode::FAILURE
        }
    }
}
