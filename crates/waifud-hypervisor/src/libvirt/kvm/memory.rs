//! Remembers what the test machine said, so that restarts of the agent need not run it again.
//!
//! A success holds until the kernel, QEMU, the CPU or the cheap signs change. A failure holds until the next boot of
//! the host as well: it may have had a passing cause, such as a machine that was too busy.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use waifud_types::node::HypervisorFacts;
use waifud_types::status::HypervisorKind;

use super::Signs;

#[derive(Serialize, Deserialize)]
struct Memory {
    signs: Signs,
    facts: HypervisorFacts,
}

/// What is remembered for these signs. Anything unreadable counts as nothing.
pub(super) fn recall(cache: &Path, signs: &Signs) -> Option<HypervisorFacts> {
    let text = std::fs::read(cache).ok()?;
    let memory: Memory = serde_json::from_slice(&text).ok()?;
    let mut then = memory.signs;
    if memory.facts.kind == HypervisorKind::Kvm {
        then.boot_id.clone_from(&signs.boot_id);
    }
    (then == *signs).then_some(memory.facts)
}

/// Writes it aside and renames, so that a crash leaves the old or the new.
pub(super) fn remember(cache: &Path, signs: Signs, facts: &HypervisorFacts) -> io::Result<()> {
    let facts = facts.clone();
    let text = serde_json::to_vec_pretty(&Memory { signs, facts })?;
    if let Some(directory) = cache.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let aside = cache.with_extension("new");
    std::fs::write(&aside, text)?;
    std::fs::rename(aside, cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kind: HypervisorKind) -> HypervisorFacts {
        HypervisorFacts {
            kind,
            reason: "because".to_owned(),
        }
    }

    fn signs(kernel: &str, boot_id: &str) -> Signs {
        Signs {
            kernel: kernel.to_owned(),
            boot_id: boot_id.to_owned(),
            ..Signs::default()
        }
    }

    #[test]
    fn a_success_holds_over_reboots_and_ends_with_another_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("deep/probe.json");
        assert_eq!(recall(&cache, &signs("1", "a")), None);
        let yes = facts(HypervisorKind::Kvm);
        remember(&cache, signs("1", "a"), &yes).unwrap();
        assert_eq!(recall(&cache, &signs("1", "b")), Some(yes));
        assert_eq!(recall(&cache, &signs("2", "a")), None);
    }

    #[test]
    fn a_failure_holds_until_the_next_boot() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("probe.json");
        let no = facts(HypervisorKind::Tcg);
        remember(&cache, signs("1", "a"), &no).unwrap();
        assert_eq!(recall(&cache, &signs("1", "a")), Some(no));
        assert_eq!(recall(&cache, &signs("1", "b")), None);
    }

    #[test]
    fn a_damaged_memory_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("probe.json");
        std::fs::write(&cache, "{").unwrap();
        assert_eq!(recall(&cache, &signs("1", "a")), None);
    }
}
