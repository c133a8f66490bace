//! What can be typed about a spec: wishes at `create`, and the verbs that change what an owner says of an instance.

use clap::builder::NonEmptyStringValueParser;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use waifud_types::MacAddr;
use waifud_types::spec::RestartPolicy;

use crate::complete;

/// Wishes of `create` that are no sizes.
#[derive(Debug, Default, Args)]
pub struct WishArgs {
    /// Run it on this node
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::nodes))]
    pub node: Option<String>,
    /// Only on a node with this label; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub require: Vec<String>,
    /// On another node than others of this group; with ,strict it waits rather than shares one
    #[arg(long, value_name = "GROUP[,strict]")]
    pub spread: Option<String>,
    /// What happens when it stops by itself: always, on-crash or never [default: on-crash]
    #[arg(long, value_name = "POLICY", value_parser = restart_policy)]
    pub restart: Option<RestartPolicy>,
    /// Higher starts earlier and stops later [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub priority: Option<i32>,
    /// Refuse to delete it
    #[arg(long)]
    pub protect: bool,
    /// A further address, or a range, that it may send from, such as one that kube-vip moves about; repeatable. For its
    /// first network, unless NAME: says which
    #[arg(long, value_name = "[NAME:]ADDRESS[/PREFIX]")]
    pub allow_address: Vec<String>,
    /// The MAC address of its first nic [default: one is chosen]
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddr>,
    /// Leave it off
    #[arg(long)]
    pub no_start: bool,
}

/// `label`.
#[derive(Debug, Args)]
pub struct LabelArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    pub changes: Vec<String>,
}

/// `schema`.
#[derive(Clone, Copy, Debug, Args)]
pub struct SchemaArgs {
    /// Of what
    pub of: SchemaOf,
}

/// What has a schema.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SchemaOf {
    /// The description of an instance.
    Instance,
}

/// `edit`.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Take new user-data from a file instead of an editor; - reads standard input
    #[arg(long, value_name = "FILE", conflicts_with = "spec")]
    pub user_data: Option<PathBuf>,
    /// Edit the whole description
    #[arg(long)]
    pub spec: bool,
    /// Make the next boot a first boot for cloud-init
    #[arg(long)]
    pub re_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Names or ids
    #[arg(required = true, add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// What for
    #[arg(long = "for", value_name = "WHAT")]
    pub what: WaitFor,
    /// How long, for all of them, such as 90s, 10m or 1h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = crate::cli::parse_duration)]
    pub timeout: Duration,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum WaitFor {
    /// Its virtual machine runs.
    Running,
    /// It has an address.
    Address,
    /// cloud-init in it has finished.
    Ready,
    /// It is off.
    Stopped,
    /// Nothing of it is left.
    Deleted,
}

/// `completions`.
#[derive(Clone, Copy, Debug, Args)]
pub struct CompletionsArgs {
    /// Of which shell
    pub shell: clap_complete::Shell,
}

fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "always" => Ok(RestartPolicy::Always),
        "on-crash" => Ok(RestartPolicy::OnCrash),
        "never" => Ok(RestartPolicy::Never),
        _ => Err("write always, on-crash or never".to_owned()),
    }
}
