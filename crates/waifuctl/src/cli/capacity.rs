//! Arguments of `capacity`.

use clap::Args;
use waifud_types::ByteSize;

#[derive(Debug, Args)]
pub struct CapacityArgs {
    /// Number of virtual CPUs of each instance [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory of each instance [default: 1G]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<ByteSize>,
    /// Size of the disk of each instance [default: 10G]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub disk: Option<ByteSize>,
    /// Also tell whether all running instances would fit with this many of the largest nodes off
    #[arg(long, value_name = "N")]
    pub survive: Option<u32>,
}
