//! The digest of everything that determines the contents of an image, except for the versions of packages: an image is
//! rebuilt when the recipe changes or the cached file is deleted, not when Debian publishes an update.

use crate::{Guest, debian, hash, tiny};

/// Increase it when a change of code affects the image but none of the texts.
pub const VERSION: u32 = 2;

/// The recipe's digest: 64 hex digits.
pub fn digest(guest: Guest) -> String {
    let name = guest.to_string();
    let version = VERSION.to_string();
    let mut fields = vec![name.as_str(), version.as_str(), guest.suite()];
    let (packages, texts) = match guest {
        Guest::DebianBookworm | Guest::DebianTrixie | Guest::DebianNode => {
            (debian::packages(guest), debian::texts().to_vec())
        }
        Guest::Tiny => (tiny::PACKAGES.to_vec(), tiny::texts()),
    };
    fields.push("packages");
    fields.extend(packages);
    fields.push("texts");
    fields.extend(texts);
    hash::of_fields(fields)
}

/// The name of the image in the cache.
pub fn file_name(guest: Guest) -> String {
    let digest = digest(guest);
    let short: String = digest.chars().take(16).collect();
    format!("{guest}-{short}.qcow2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_stable_and_differs_between_guests() {
        let digests = Guest::ALL.map(digest);
        assert_eq!(digests, Guest::ALL.map(digest));
        for (i, one) in digests.iter().enumerate() {
            assert_eq!(one.len(), 64);
            assert!(digests.iter().skip(i + 1).all(|other| other != one));
        }
    }

    #[test]
    fn the_cached_file_is_named_by_guest_and_short_digest() {
        let name = file_name(Guest::Tiny);
        let digest = name
            .strip_prefix("tiny-")
            .and_then(|rest| rest.strip_suffix(".qcow2"))
            .unwrap();
        assert_eq!(digest.len(), 16);
    }
}
