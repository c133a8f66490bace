//! What can be typed about power and size: `start`, `stop`, `reboot`, `resize`, `rescue`.

use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use waifud_types::ByteSize;

use clap_complete::engine::ArgValueCandidates;

use super::{SelectArgs, parse_duration};
use crate::complete;

/// Which instances, and whether to wait.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Which
    #[command(flatten)]
    pub select: SelectArgs,
    /// Wait until it is done: until a started instance is ready, a stopped one is off
    #[arg(short, long)]
    pub wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// `stop` and `reboot`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Power off now, without asking the guest: what it has not written is lost
    #[arg(short, long)]
    pub force: bool,
    /// Which, and whether to wait
    #[command(flatten)]
    pub which: StartArgs,
}

/// `resize`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("sizes").required(true).multiple(true).args(["cpus", "memory", "disk"]))]
pub struct ResizeArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Virtual CPUs, effective at the next start
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory, for example 4G, effective at the next start
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<ByteSize>,
    /// The root disk's size, for example 40G: effective at once; a disk only grows
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub disk: Option<ByteSize>,
    /// Reboot it, so that CPUs and memory take effect now
    #[arg(long)]
    pub restart: bool,
    /// Wait until it is done
    #[arg(short, long)]
    pub wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// `rescue`.
#[derive(Debug, Args)]
pub struct RescueArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// What to boot [default: the template called rescue, else alpine of the catalog]
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with = "end")]
    pub template: Option<String>,
    /// A public key to let in: a file or the key itself [default: ~/.ssh/*.pub]
    #[arg(long, value_name = "KEY", conflicts_with = "end")]
    pub ssh_key: Vec<String>,
    /// Boot its own disk again, and throw the rescue disk away
    #[arg(long)]
    pub end: bool,
    /// Power off now, without asking the guest: what it has not written is lost
    #[arg(short, long)]
    pub force: bool,
    /// Wait until it is done
    #[arg(short, long)]
    pub wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}
