//! SHA-256 of files and recipes, and the identifiers derived from it.

use std::path::Path;

use anyhow::{Context as _, Result};
use uuid::{Builder, Uuid};
pub use waifud_kit::sha256::hex;

/// SHA-256 of a file, in hex.
pub fn of_file(path: &Path) -> Result<String> {
    let (_, hash) = waifud_kit::sha256::of_file(path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hash))
}

/// SHA-256 of a list of fields, in hex. Each field is preceded by its length, so that different lists have different
/// input.
pub fn of_fields<'a>(fields: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = waifud_kit::sha256::Hasher::default();
    for field in fields {
        hasher.update(&(field.len() as u64).to_be_bytes());
        hasher.update(field.as_bytes());
    }
    hex(&hasher.finish())
}

/// An identifier that depends only on the recipe and the named object: the same recipe results in the same ids of
/// partitions and file systems.
pub fn derived_uuid(recipe: &str, what: &str) -> Uuid {
    let hash = waifud_kit::sha256::of(format!("{recipe} {what}").as_bytes());
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(hash) {
        *to = from;
    }
    Builder::from_random_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_a_file_is_its_sha_256() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        // FIPS 180-4, example of one block.
        assert_eq!(
            of_file(file.path()).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn moving_text_from_one_field_to_the_next_changes_the_digest() {
        assert_ne!(of_fields(["ab", "c"]), of_fields(["a", "bc"]));
    }

    #[test]
    fn derived_ids_are_stable_and_differ_by_purpose() {
        assert_eq!(derived_uuid("r", "root"), derived_uuid("r", "root"));
        assert_ne!(derived_uuid("r", "root"), derived_uuid("r", "esp"));
        assert_ne!(derived_uuid("r", "root"), derived_uuid("s", "root"));
    }
}
