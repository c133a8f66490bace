//! What can be typed about a spec: wishes at `create`, and the verbs that change what an owner says of an instance.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use waifud_types::MacAddr;
use waifud_types::spec::RestartPolicy;

/// Wishes of `create` that are no sizes.
#[derive(Debug, Default, Args)]
pub struct WishArgs {
    /// Run it on this node
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Only on a node with this label; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub require: Vec<String>,
    /// On another node than others of this group; with ,strict it rather waits than shares one
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
    /// The MAC address of its nic [default: one is chosen]
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddr>,
    /// Leave it off
    #[arg(long)]
    pub no_start: bool,
}

/// `label`.
#[derive(Debug, Args)]
pub struct LabelArgs {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    pub changes: Vec<String>,
}

fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "always" => Ok(RestartPolicy::Always),
        "on-crash" => Ok(RestartPolicy::OnCrash),
        "never" => Ok(RestartPolicy::Never),
        _ => Err("write always, on-crash or never".to_owned()),
    }
}
