//! Arguments of `list` and `show`, and their output formats.

use std::str::FromStr;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCandidates;

use crate::columns::Columns;
use crate::complete;
use crate::selector::Selector;

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Names or ids of instances [default: all]
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["state", "node", "template", "label"])]
    pub names: Vec<String>,
    /// List only instances in this state
    #[arg(long)]
    pub state: Option<String>,
    /// List only instances on this node
    #[arg(long, add = ArgValueCandidates::new(complete::nodes))]
    pub node: Option<String>,
    /// List only instances of this template
    #[arg(short, long, add = ArgValueCandidates::new(complete::templates))]
    pub template: Option<String>,
    /// List only instances with these labels: KEY=VALUE, KEY!=VALUE, KEY or !KEY, separated by commas
    #[arg(short, long, value_name = "SELECTOR")]
    pub label: Vec<Selector>,
    /// table, wide, name, json, yaml (descriptions for create -f), or columns=NAME,STATE,… with headings of wide or
    /// HEADING:.path of the JSON
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ListFormat>,
    /// Do not print the headings
    #[arg(long)]
    pub no_headers: bool,
    /// Sort by a heading of wide or a .path of the JSON; a leading - reverses the order [default: name]
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// After the list, print changes until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListFormat {
    Table,
    /// A table with more columns.
    Wide,
    /// Only names, one per line.
    Name,
    /// The JSON of the API.
    Json,
    /// Descriptions for `create -f`.
    Yaml,
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

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Names or ids of instances
    #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(complete::instances),
        value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// text, json, or yaml (a description for create -f)
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ShowFormat>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ShowFormat {
    /// One line per field.
    Text,
    /// The JSON of the API.
    Json,
    /// A description for `create -f`.
    Yaml,
}
