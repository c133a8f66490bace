//! Arguments of `publish` and `unpublish`.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCandidates;
use waifud_api::Publish;

use crate::{complete, network_args};

#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The node's port, followed by the guest's port if it differs
    #[arg(value_name = "PORT[:GUESTPORT][/udp]", value_parser = network_args::port)]
    pub port: Publish,
}

#[derive(Debug, Args)]
pub struct UnpublishArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The node's port
    #[arg(value_name = "PORT[/udp]", value_parser = network_args::port)]
    pub port: Publish,
}
