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

/// Things are on it that are in nobody's list, and it could still be told what to do with them.
pub fn has_unclaimed(node: &Name, count: usize) -> Problem {
    Problem::new(
        409,
        "node-in-use",
        format!("{node} has {count} things that are in nobody's list"),
    )
    .field("name")
    .hint(format!(
        "waifuctl node show {node} lists them; claim or delete them, or switch the node off first"
    ))
}
