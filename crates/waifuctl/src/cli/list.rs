//! What can be typed to see instances: `list` and `show`, and the forms of their output.

use std::str::FromStr;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCandidates;

use crate::columns::Columns;
use crate::complete;
use crate::selector::Selector;

/// `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only these, by name or id
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["state", "node", "template", "label"])]
    pub names: Vec<String>,
    /// Only in this state
    #[arg(long)]
    pub state: Option<String>,
    /// Only on this node
    #[arg(long, add = ArgValueCandidates::new(complete::nodes))]
    pub node: Option<String>,
    /// Only from this template
    #[arg(short, long, add = ArgValueCandidates::new(complete::templates))]
    pub template: Option<String>,
    /// Only with these labels: KEY=VALUE, KEY!=VALUE, KEY or !KEY, separated by commas
    #[arg(short, long, value_name = "SELECTOR")]
    pub label: Vec<Selector>,
    /// table, wide, name, json, yaml (descriptions that create -f reads), or columns=NAME,STATE,… with headings of wide or
    /// HEADING:.path of the JSON
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ListFormat>,
    /// Leave the line of headings out
    #[arg(long)]
    pub no_headers: bool,
    /// Sort by a heading of wide or a .path of the JSON; with - before it, in reverse [default: name]
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// Then print what changes, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
}

/// How instances are listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListFormat {
    /// A table.
    Table,
    /// With more columns.
    Wide,
    /// Names only, one a line.
    Name,
    /// As the API has it.
    Json,
    /// Their descriptions.
    Yaml,
    /// Chosen columns.
    Columns(Columns),
}

impl FromStr for ListFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "table" => Self::Table,
            "wide" => Self::Wide,
            "name" => Self::Name,
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            _ => {
                let columns = text
                    .strip_prefix("columns=")
                    .or_else(|| text.strip_prefix("custom-columns="))
                    .ok_or_else(|| {
                        "write table, wide, name, json, yaml, or columns=NAME,STATE,AGE".to_owned()
                    })?;
                Self::Columns(columns.parse()?)
            }
        })
    }
}

/// `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(complete::instances),
        value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// text, json, or yaml for a description that create -f reads
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ShowFormat>,
}

/// How one instance is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ShowFormat {
    /// A line for each field.
    Text,
    /// As the API has it.
    Json,
    /// Its description.
    Yaml,
}
