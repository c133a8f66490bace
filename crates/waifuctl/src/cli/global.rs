//! Options that every command accepts.

use std::path::PathBuf;

use clap::Args;
use waifud_types::Name;

/// Their place in the help, after the options of the command itself.
const HEADING: &str = "Global options";

/// Which waifud is used, and how results are printed.
#[derive(Clone, Debug, Default, Args)]
pub struct GlobalArgs {
    // An explicit `help`: clap would read the default in brackets as a link of this comment.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help_heading = HEADING,
        help = "The socket of waifud on this machine [env: WAIFUD_SOCKET] [default: /run/waifud/waifud.sock]"
    )]
    pub socket: Option<PathBuf>,

    /// The context to use, as created by `waifuctl login`; `local` is the waifud on this machine
    #[arg(long, global = true, value_name = "NAME", help_heading = HEADING)]
    pub context: Option<Name>,

    /// Print JSON: data on stdout, errors as problem bodies (RFC 9457) on stderr
    #[arg(long, global = true, help_heading = HEADING)]
    pub json: bool,

    /// Print only data and errors: no notes, warnings or progress
    #[arg(short, long, global = true, help_heading = HEADING)]
    pub quiet: bool,
}
