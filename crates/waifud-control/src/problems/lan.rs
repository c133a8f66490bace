//! Problems with networks that are bridges of the hosts.

use waifud_api::Problem;
use waifud_types::Name;

/// A network has the name.
pub fn name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "network-name-taken",
        format!("there is a network {name} already"),
    )
    .field("name")
    .hint("waifuctl network list; choose another name")
}

/// Another network is the bridge.
pub fn bridge_taken(bridge: &str, owner: Option<&Name>) -> Problem {
    let owner = owner.map_or("another network", |name| name.as_str());
    Problem::new(
        409,
        "bridge-in-use",
        format!("bridge {bridge} is network {owner} already"),
    )
    .field("bridge")
    .hint(format!(
        "use {owner}, or delete it first if no instance does"
    ))
}

/// Not a name for a bridge.
pub fn bad_bridge(text: &str, most: usize) -> Problem {
    let shown: String = text.chars().take(80).collect();
    Problem::new(
        422,
        "invalid-bridge",
        format!("{shown:?} is not a name for a bridge"),
    )
    .field("bridge")
    .hint(format!(
        "1 to {most} of a-z, A-Z, 0-9, -, _ and ., such as br0; `ip link show type bridge` lists a node's"
    ))
}

/// There is such a bridge, and guests can't be on it.
pub fn bridge_unfit(bridge: &str, why: &str) -> Problem {
    Problem::new(422, "unsuitable-bridge", format!("{bridge} {why}"))
        .field("bridge")
        .hint("make a bridge with a wired uplink on the node: docs/guides/lan.md")
}

/// It is every node's own.
pub fn default_stays() -> Problem {
    Problem::new(
        409,
        "default-network",
        "default is every node's own network and stays",
    )
    .field("name")
    .hint("only networks that were added can be deleted")
}

/// Instances have nics on it.
pub fn in_use(name: &Name, count: u64, users: &[Name]) -> Problem {
    let named: Vec<_> = users.iter().map(Name::as_str).collect();
    let more = count.saturating_sub(users.len() as u64);
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    Problem::new(
        409,
        "network-in-use",
        format!("{name} is used by {}{more}", named.join(", ")),
    )
    .field("name")
    .hint("delete these instances first; one that is being destroyed uses it until its node has confirmed that")
}
