//! What can be typed to destroy instances.

use std::time::Duration;

use clap::Args;

use super::{SelectArgs, parse_duration};

/// `delete`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option that can be typed"
)]
pub struct DeleteArgs {
    /// Which
    #[command(flatten)]
    pub which: SelectArgs,
    /// Leave out names that do not exist, instead of failing
    #[arg(long, conflicts_with = "unmanaged")]
    pub ignore_missing: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// They exist on a node but not in waifud's database (`waifuctl node show` lists them); their disks are destroyed too
    #[arg(long, conflicts_with_all = ["wait", "all", "selector"])]
    pub unmanaged: bool,
    /// With --unmanaged: the node that has them
    #[arg(long, value_name = "NODE", requires = "unmanaged")]
    pub node: Option<String>,
    /// Wait until they are destroyed
    #[arg(short, long)]
    pub wait: bool,
    /// How long --wait waits
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}
