//! What can be typed of what the guest agent does.

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Wait this long for the program's end, for example 90s or 10m, at most 1h; it is not ended then [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = crate::cli::parse_exec_timeout)]
    pub timeout: Option<u32>,
    /// Run it without input; a file or a pipe at standard input is read otherwise, 1 MiB at most
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
    /// The program and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `passwd`.
#[derive(Debug, Args)]
pub struct PasswdArgs {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The guest's user
    #[arg(long, default_value = "root", value_parser = NonEmptyStringValueParser::new())]
    pub user: String,
    /// Read the password from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}
