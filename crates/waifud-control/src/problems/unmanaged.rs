//! Problems with what is on a node and in nobody's list.

use waifud_api::Problem;
use waifud_types::Name;

/// It is in the list.
pub fn already_managed(name: &Name) -> Problem {
    Problem::new(
        409,
        "already-managed",
        format!("instance {name} is in the list already"),
    )
    .hint("waifuctl show and waifuctl delete work on it")
}

/// Its node remembers too little of it.
pub fn not_adoptable(name: &Name) -> Problem {
    Problem::new(
        409,
        "not-adoptable",
        format!("the node does not remember what {name} was made from, so it can't be adopted"),
    )
    .hint("its disks are on the node: copy what is wanted from them, then delete it with waifuctl delete --unmanaged")
}

/// What its node remembers of it is not what any instance is given.
pub fn odd_record(name: &Name, what: &str) -> Problem {
    Problem::new(
        409,
        "not-adoptable",
        format!("what the node remembers of {name} can't be: no instance has such {what}"),
    )
    .hint("look at the node: what it reports is not what waifud gave it")
}

/// A living instance has the name.
pub fn adopted_name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "name-taken",
        format!("an instance named {name} exists"),
    )
    .field("name")
    .hint("adopt it under another name: --name NEWNAME")
}

/// Something of it was given to another instance meanwhile.
pub fn adopt_conflict(name: &Name, what: &str) -> Problem {
    Problem::new(
        409,
        "adopt-conflict",
        format!("{name} can't be adopted: {what} is in use by another instance"),
    )
    .hint("delete the other instance first, or leave this one as it is")
}

/// More than one thing has the name.
pub fn ambiguous_unmanaged(name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(
        409,
        "ambiguous-name",
        format!("more than one unmanaged instance was called {shown:?}"),
    )
    .field("instance")
    .hint("use the id: waifuctl node show lists them")
}

/// A network that it is on is not known, or means another bridge.
pub fn other_network(name: &Name, network: &Name, bridge: Option<&str>, known: bool) -> Problem {
    let bridge = bridge.unwrap_or("BRIDGE");
    let (what, hint) = if known {
        (
            "means another bridge now",
            "delete that network first if no instance uses it, or leave this one as it is"
                .to_owned(),
        )
    } else {
        (
            "is not known here",
            format!("waifuctl network add {network} --bridge {bridge}, then adopt it again"),
        )
    };
    Problem::new(
        409,
        "adopt-conflict",
        format!(
            "{name} can't be adopted: the network {network} (bridge {bridge}) that it is on {what}"
        ),
    )
    .hint(hint)
}
