//! Which instances a verb is about: names, all of them, or those that labels select.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCandidates;

use crate::complete;
use crate::selector::Selector;

/// Names, `--all` or `-l`.
#[derive(Debug, Default, Args)]
pub struct SelectArgs {
    /// Names or ids
    #[arg(required_unless_present_any = ["all", "selector"], add = ArgValueCandidates::new(complete::instances),
        value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// All instances
    #[arg(long, conflicts_with_all = ["names", "selector"])]
    pub all: bool,
    /// Instances with these labels: KEY=VALUE, KEY!=VALUE, KEY or !KEY; several are separated by commas or given with
    /// several -l, and all have to fit
    #[arg(
        short = 'l',
        long = "label",
        value_name = "SELECTOR",
        conflicts_with = "names"
    )]
    pub selector: Vec<Selector>,
}

impl SelectArgs {
    /// Just these names.
    pub fn of(names: Vec<String>) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }
}
