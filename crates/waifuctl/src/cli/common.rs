//! Arguments that several commands share.

use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCandidates;

use super::parse_duration;
use crate::complete;
use crate::selector::Selector;

#[derive(Debug, Args)]
pub struct InstanceArg {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

/// Selects instances by name, by label, or all of them.
#[derive(Debug, Default, Args)]
pub struct SelectArgs {
    /// Names or ids of instances
    #[arg(required_unless_present_any = ["all", "selector"], add = ArgValueCandidates::new(complete::instances),
        value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// Select all instances
    #[arg(long, conflicts_with_all = ["names", "selector"])]
    pub all: bool,
    /// Select instances by labels: KEY=VALUE, KEY!=VALUE, KEY or !KEY. Separate several with commas or repeat -l; all must
    /// match
    #[arg(
        short = 'l',
        long = "label",
        value_name = "SELECTOR",
        conflicts_with = "names"
    )]
    pub selector: Vec<Selector>,
}

impl SelectArgs {
    pub fn of(names: Vec<String>) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }
}

/// `--wait` and `--timeout` of commands that change instances.
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitOptions {
    /// Wait until the change is complete: a started or rebooted instance is ready, a stopped one is off, a deleted one is
    /// destroyed
    #[arg(short, long)]
    pub wait: bool,
    /// Time limit of --wait [default: 5m, or 15m for an instance that is emulated without KVM]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// A KEY=VALUE or KEY- list of label changes.
#[derive(Debug, Args)]
pub struct LabelChanges {
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    pub changes: Vec<String>,
}
