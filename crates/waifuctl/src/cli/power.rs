//! What can be typed about power and size: `start`, `stop`, `reboot`, `resize`, `rescue`.

use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use waifud_types::ByteSize;

use super::parse_duration;

/// Which instances, and whether to wait.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Names or ids
    #[arg(required = true, value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// Wait until it is done
    #[arg(short, long)]
    pub wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// `stop` and `reboot`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Pull the plug now, without asking the guest: what it has not written is lost
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
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Virtual CPUs, from the next start on
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory, such as 4G, from the next start on
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<ByteSize>,
    /// The root disk's size, such as 40G: at once, and it only grows
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub disk: Option<ByteSize>,
    /// Reboot it, so that CPUs and memory count now
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
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
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
    /// Pull the plug now, without asking the guest: what it has not written is lost
    #[arg(short, long)]
    pub force: bool,
    /// Wait until it is done
    #[arg(short, long)]
    pub wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}
