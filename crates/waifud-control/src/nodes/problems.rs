//! Problems with removing nodes.

use waifud_api::Problem;
use waifud_types::Name;

/// Instances are on it that nobody deleted.
pub fn has_instances(node: &Name, shown: &[Name], count: usize) -> Problem {
    let names: Vec<_> = shown.iter().map(Name::as_str).collect();
    let more = count.saturating_sub(shown.len());
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    Problem::new(
        409,
        "node-in-use",
        format!("{node} has {}{more}", names.join(", ")),
    )
    .field("name")
    .hint(format!(
        "delete them first: waifuctl delete {}; on a node that is off they count as deleted from then on",
        names.join(" ")
    ))
}

/// A node says more, longer or larger things than any has to say.
pub fn out_of_bounds(field: &str, why: &str) -> Problem {
    Problem::new(422, "out-of-bounds", format!("{field}: {why}"))
        .field(field)
        .hint("waifud-agentd keeps within bounds by itself: is it of another version than waifud?")
}

/// A node has more to write down than waifud writes for one.
pub fn too_many_changes() -> Problem {
    Problem::new(
        429,
        "too-many-changes",
        "this node reports more changes than waifud writes down for one node",
    )
    .hint("wait a few seconds and send it again")
}

/// Another node has the name.
pub fn name_taken(name: &Name) -> Problem {
    Problem::new(409, "name-taken", format!("a node named {name} exists"))
        .field("name")
        .hint("choose another name: waifuctl node list shows those that are taken")
}

/// Things are on it that are in nobody's list, and it could still be told what to do with them.
pub fn has_unmanaged(node: &Name, count: u32) -> Problem {
    Problem::new(
        409,
        "node-in-use",
        format!("{node} has {count} things that are in nobody's list"),
    )
    .field("name")
    .hint(format!(
        "waifuctl node show {node} lists them; adopt or delete them, or switch the node off first"
    ))
}

/// The node is not known here.
pub fn unknown_node() -> Problem {
    Problem::new(404, "unknown-node", "this node is not known").hint("say hello first")
}

/// The certificate is not the one that the node is known by.
pub fn node_not_admitted() -> Problem {
    Problem::new(
        403,
        "not-admitted",
        "this certificate is not the one that the node is known by",
    )
    .hint("the node has joined anew with another key, or waifud's database is another one; join again: waifuctl node token create --name NAME")
}

/// The join token lets nobody in.
pub fn join_token(why: &str) -> Problem {
    Problem::new(
        401,
        "invalid-join-token",
        format!("the join token can't be used: {why}"),
    )
    .field("token")
    .hint("make a new one: waifuctl node token create")
}

/// The request for a certificate is none.
pub fn bad_csr(error: &waifud_pki::PkiError) -> Problem {
    Problem::new(422, "invalid-csr", error.to_string())
        .field("csr")
        .hint("waifud-agentd join makes one")
}

/// The token is for another node.
pub fn join_other_name(name: &Name) -> Problem {
    Problem::new(
        409,
        "node-mismatch",
        format!("the join token is for node {name} only"),
    )
    .field("name")
    .hint("set `node` in agentd.toml, or make a token for this node's name")
}

/// A node of that name is in already.
pub fn join_name_taken(name: &Name) -> Problem {
    Problem::new(409, "name-taken", format!("a node named {name} is in already"))
        .field("name")
        .hint(format!(
            "if this is that machine: waifuctl node token create --name {name}; else set `node` in agentd.toml"
        ))
}

/// Another node has the name.
pub fn node_name_taken(name: &Name) -> Problem {
    Problem::new(409, "name-taken", format!("another node is named {name}"))
        .field("name")
        .hint("give this machine another name in its agent's configuration")
}

/// No subnet is left.
pub fn no_subnet(range: &str) -> Problem {
    Problem::new(
        409,
        "no-subnet",
        format!("no /24 of {range} is free of other nodes and of this node's routes"),
    )
    .hint("choose another guest_range in waifud's configuration")
}

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
