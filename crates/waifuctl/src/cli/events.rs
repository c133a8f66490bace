//! Arguments of `events`.

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use crate::complete;

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only events of this instance, template or node; TYPE/NAME names the type as well
    #[arg(add = ArgValueCandidates::new(complete::instances))]
    pub object: Option<String>,
    /// Keep printing new events
    #[arg(short, long)]
    pub follow: bool,
    /// Only events after this revision
    #[arg(long, value_name = "REVISION")]
    pub since: Option<String>,
    /// Maximum number of events
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u32,
}
