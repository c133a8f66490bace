//! Arguments of `create`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCandidates;
use waifud_api::{CreateNic, Publish};
use waifud_types::spec::RestartPolicy;
use waifud_types::{ByteSize, MacAddr};

use super::parse_duration;
use crate::{complete, network_args};

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the instance, a DNS label: a-z, 0-9 and -
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    /// A YAML file that describes one or more instances; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The template to create the instance from; if it does not exist, it is added from the catalog first
    #[arg(short, long, value_name = "NAME", required_unless_present = "file", add = ArgValueCandidates::new(complete::templates))]
    pub template: Option<String>,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory, for example 2G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<ByteSize>,
    /// Size of the root disk, for example 20G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub disk: Option<ByteSize>,
    /// The pool of the root disk
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// A file with cloud-init user-data; - reads standard input
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// A public SSH key: a file or the key itself; repeatable [default: ~/.ssh/*.pub]
    #[arg(long, value_name = "FILE|KEY")]
    pub ssh_key: Vec<String>,
    /// Do not add any SSH key to the guest
    #[arg(long, conflicts_with = "ssh_key")]
    pub no_ssh_key: bool,
    /// A label; repeatable
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    #[command(flatten)]
    pub options: SpecArgs,
    /// A network, with an optional fixed address; repeatable. The first one has the default route [default: default]
    #[arg(long, value_name = "NAME[,address=IP[/PREFIX],gateway=IP,mac=MAC,vlan=N]", value_parser = network_args::network)]
    pub network: Vec<CreateNic>,
    /// Publish a port of the node to the instance; repeatable
    #[arg(long, value_name = "PORT[:GUESTPORT][/udp]", value_parser = network_args::port)]
    pub publish: Vec<Publish>,
    /// Validate the request and show where it would be placed, without creating anything
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Wait until cloud-init in the guest has finished, and show the steps
    #[arg(short, long)]
    pub wait: bool,
    /// Time limit of --wait, for example 90s, 10m or 1h
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Makes a repeated call idempotent [default: random]
    #[arg(long, value_name = "KEY", hide = true, conflicts_with = "file")]
    pub idempotency_key: Option<String>,
}

/// Placement and policies of a new instance.
#[derive(Debug, Default, Args)]
pub struct SpecArgs {
    /// Run the instance on this node
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::nodes))]
    pub node: Option<String>,
    /// Place the instance only on a node with this label; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub require: Vec<String>,
    /// Prefer a node without other instances of this group; with ,strict the instance stays pending rather than sharing
    /// a node
    #[arg(long, value_name = "GROUP[,strict]")]
    pub spread: Option<String>,
    /// Prefer the node of this instance, if it is suitable
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::instances))]
    pub near: Option<String>,
    /// When to restart a guest that stops on its own: always, on-crash or never [default: on-crash]
    #[arg(long, value_name = "POLICY", value_parser = restart_policy)]
    pub restart: Option<RestartPolicy>,
    /// Instances with a higher priority start earlier and stop later [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub priority: Option<i32>,
    /// Protect the instance against deletion
    #[arg(long)]
    pub protect: bool,
    /// An additional address or range that the instance may send from, for example a virtual IP of kube-vip; repeatable.
    /// Applies to the first network unless NAME: names another
    #[arg(long, value_name = "[NAME:]ADDRESS[/PREFIX]")]
    pub allow_address: Vec<String>,
    /// MAC address of the first nic [default: generated]
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddr>,
    /// Create the instance without starting it
    #[arg(long)]
    pub no_start: bool,
}

fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "always" => Ok(RestartPolicy::Always),
        "on-crash" => Ok(RestartPolicy::OnCrash),
        "never" => Ok(RestartPolicy::Never),
        _ => Err("write always, on-crash or never".to_owned()),
    }
}
