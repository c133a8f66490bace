//! Arguments of commands that use the guest agent: `exec` and `passwd`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCandidates;

use super::parse_exec_timeout;
use crate::complete;

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// How long to wait for the program, for example 90s or 10m, at most 1h; the program keeps running after that
    /// [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_exec_timeout)]
    pub timeout: Option<u32>,
    /// Run the program without input. By default, a file or pipe on standard input is passed to the program, at most 1 MiB
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
    /// The program and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PasswdArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The user in the guest
    #[arg(long, default_value = "root", value_parser = NonEmptyStringValueParser::new())]
    pub user: String,
    /// Read the password from a file; - reads standard input
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}
