//! Caches the result of the test machine, so that a restarted agent need not run it again.
//!
//! A success is valid until the kernel, QEMU, the CPU or another property changes. A failure also expires at the next
//! boot of the host, because its cause may be temporary, for example a busy machine.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use waifud_kit::durable;
use waifud_types::node::HypervisorFacts;
use waifud_types::status::HypervisorKind;

use super::HostFeatures;

#[derive(Serialize, Deserialize)]
struct Entry {
    // Older versions wrote the name `signs`.
    #[serde(alias = "signs")]
    features: HostFeatures,
    facts: HypervisorFacts,
}

/// The cached result for these properties. An unreadable file is treated as absent.
pub(super) fn load(cache: &Path, features: &HostFeatures) -> Option<HypervisorFacts> {
    let text = std::fs::read(cache).ok()?;
    let entry: Entry = serde_json::from_slice(&text).ok()?;
    let mut cached = entry.features;
    if entry.facts.kind == HypervisorKind::Kvm {
        cached.boot_id.clone_from(&features.boot_id);
    }
    (cached == *features).then_some(entry.facts)
}

pub(super) fn store(
    cache: &Path,
    features: HostFeatures,
    facts: &HypervisorFacts,
) -> io::Result<()> {
    let facts = facts.clone();
    let text = serde_json::to_vec_pretty(&Entry { features, facts })?;
    if let Some(directory) = cache.parent() {
        std::fs::create_dir_all(directory)?;
    }
    durable::replace(cache, &text, 0o644)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// Stores a result for the kernel `1` and the boot `a`. Returns the directory, the cache file and the result.
    fn stored(kind: HypervisorKind) -> (TempDir, PathBuf, HypervisorFacts) {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("new/probe.json");
        assert_eq!(load(&cache, &features("1", "a")), None);
        let facts = HypervisorFacts {
            kind,
            reason: "a reason".to_owned(),
            cause: None,
        };
        store(&cache, features("1", "a"), &facts).unwrap();
        (directory, cache, facts)
    }

    fn features(kernel: &str, boot_id: &str) -> HostFeatures {
        HostFeatures {
            kernel: kernel.to_owned(),
            boot_id: boot_id.to_owned(),
            ..HostFeatures::default()
        }
    }

    #[test]
    fn a_success_is_valid_after_a_reboot_but_not_for_another_kernel() {
        let (_directory, cache, facts) = stored(HypervisorKind::Kvm);
        assert_eq!(load(&cache, &features("1", "b")), Some(facts));
        assert_eq!(load(&cache, &features("2", "a")), None);
    }

    #[test]
    fn a_failure_is_valid_until_the_next_boot() {
        let (_directory, cache, facts) = stored(HypervisorKind::Tcg);
        assert_eq!(load(&cache, &features("1", "a")), Some(facts));
        assert_eq!(load(&cache, &features("1", "b")), None);
    }

    #[test]
    fn a_damaged_cache_is_ignored() {
        let (_directory, cache, _) = stored(HypervisorKind::Kvm);
        std::fs::write(&cache, "{").unwrap();
        assert_eq!(load(&cache, &features("1", "a")), None);
    }

    #[test]
    fn a_cache_of_an_older_version_is_read() {
        let (_directory, cache, facts) = stored(HypervisorKind::Kvm);
        let text = std::fs::read_to_string(&cache).unwrap();
        std::fs::write(&cache, text.replace("\"features\"", "\"signs\"")).unwrap();
        assert_eq!(load(&cache, &features("1", "a")), Some(facts));
    }
}
