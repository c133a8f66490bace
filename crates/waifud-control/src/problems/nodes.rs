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
