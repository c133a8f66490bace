//! The names of a lab's machines.

use anyhow::{Result, ensure};

use crate::OUTSIDE;

/// The largest number of nodes in a lab.
pub const NODES_MAX: usize = NAMES.len();

/// The nodes' names, in the order of their addresses.
const NAMES: [&str; 16] = [
    "alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ilex", "juniper",
    "larch", "maple", "oak", "pine", "quince", "spruce",
];

/// The machine of waifud in a lab with several nodes.
pub(crate) const WAIFUD: &str = "rowan";

/// Names that mean something else in a command of `cargo xtask lab`: another machine, or a service.
const RESERVED: [&str; 4] = [OUTSIDE, "virtlogd", "libvirtd", "waifud"];

/// The names of `count` nodes, of which the first is `first`.
pub(crate) fn nodes(first: &str, count: usize) -> Result<Vec<String>> {
    check(first)?;
    ensure!(
        (1..=NODES_MAX).contains(&count),
        "a lab has 1 to {NODES_MAX} nodes, not {count}"
    );
    ensure!(
        count == 1 || first != WAIFUD,
        "{WAIFUD:?} is the machine of waifud in a lab with several nodes: choose another name"
    );
    let others = NAMES.into_iter().filter(|name| *name != first);
    Ok(std::iter::once(first)
        .chain(others)
        .take(count)
        .map(str::to_owned)
        .collect())
}

/// A node's name becomes a host name, a directory and part of an interface's name.
fn check(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 12
        && !RESERVED.contains(&name)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.ends_with('-');
    ensure!(
        fits,
        "{name:?} cannot name a node: 1 to 12 of a-z, 0-9 and -, beginning with a letter, and not {}",
        RESERVED.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_short_labels_are_refused() {
        for bad in [
            "",
            "outside",
            "waifud",
            "-a",
            "a-",
            "A",
            "a b",
            "../x",
            "a23456789012345",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for name in NAMES.into_iter().chain([WAIFUD]) {
            check(name).unwrap();
        }
    }

    #[test]
    fn nodes_have_distinct_names_and_the_first_one_can_be_chosen() {
        assert_eq!(nodes("alder", 3).unwrap(), ["alder", "birch", "cedar"]);
        assert_eq!(nodes("cedar", 3).unwrap(), ["cedar", "alder", "birch"]);
        let mut all = nodes("yew", NODES_MAX).unwrap();
        assert_eq!(all.len(), NODES_MAX);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), NODES_MAX);
    }

    #[test]
    fn too_many_nodes_and_the_name_of_waifuds_machine_are_refused() {
        for (first, count) in [("alder", 0), ("alder", NODES_MAX + 1), ("rowan", 2)] {
            assert!(nodes(first, count).is_err(), "{first} {count}");
        }
        assert_eq!(nodes("rowan", 1).unwrap(), ["rowan"]);
    }
}
