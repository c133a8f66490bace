//! Arguments of commands about waifuctl itself: `version`, `completions`, `schema` and `reference`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Clone, Copy, Debug, Args)]
pub struct VersionArgs {
    /// Show only the version of waifuctl, without contacting waifud
    #[arg(long)]
    pub client: bool,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct SchemaArgs {
    /// The kind of file
    #[arg(value_name = "KIND")]
    pub of: SchemaOf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SchemaOf {
    /// The description of an instance.
    Instance,
}

#[derive(Debug, Subcommand)]
pub enum ReferenceCommand {
    /// Print the reference as Markdown
    Markdown,
    /// Write one man page for each command
    Man {
        /// The directory to write to
        dir: PathBuf,
    },
}
