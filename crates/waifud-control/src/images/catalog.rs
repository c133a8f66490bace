//! The catalog of well-known cloud images, from `data/catalog.toml`.

use std::sync::LazyLock;

use serde::Deserialize;
use waifud_api::CatalogEntry;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    image: Vec<CatalogEntry>,
}

/// An invalid file results in an empty catalog; the test below catches it.
static CATALOG: LazyLock<Vec<CatalogEntry>> =
    LazyLock::new(
        || match toml::from_str::<File>(include_str!("../../data/catalog.toml")) {
            Ok(file) => file.image,
            Err(error) => {
                tracing::error!(%error, "parsing the catalog failed");
                Vec::new()
            }
        },
    );

/// All entries, in the order of the file.
pub fn entries() -> &'static [CatalogEntry] {
    &CATALOG
}

/// The entry with the name. Dots are treated as dashes: names are DNS labels, but users type `ubuntu-24.04`.
pub fn entry(name: &str) -> Option<&'static CatalogEntry> {
    let wanted = name.replace('.', "-");
    CATALOG.iter().find(|entry| entry.name.as_str() == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_is_well_formed() {
        let file = toml::from_str::<File>(include_str!("../../data/catalog.toml")).unwrap();
        assert!(file.image.len() >= 11);
        let mut names: Vec<_> = file.image.iter().map(|entry| &entry.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), file.image.len(), "two entries share a name");
        for entry in &file.image {
            for url in [&entry.url, &entry.checksums_url] {
                let url = reqwest::Url::parse(url).unwrap();
                assert_eq!(url.scheme(), "https", "{}", entry.name);
                assert!(url.query().is_none() && url.username().is_empty());
            }
            assert!(["x86_64", "aarch64"].contains(&entry.arch.as_str()));
            assert!(!entry.title.is_empty() && !entry.default_user.is_empty());
            let least = entry.min_memory_bytes.bytes();
            assert!((128 << 20..=4 << 30).contains(&least), "{}", entry.name);
        }
    }

    /// Clients ignore unknown fields of an entry, and so does its type.
    #[test]
    fn the_catalog_has_no_unknown_fields() {
        let text = include_str!("../../data/catalog.toml");
        let file: toml::Table = toml::from_str(text).unwrap();
        let images = file["image"].as_array().unwrap();
        for (image, entry) in images.iter().zip(entries()) {
            let known = serde_json::to_value(entry).unwrap();
            for field in image.as_table().unwrap().keys() {
                assert!(known.get(field).is_some(), "{}: {field}", entry.name);
            }
        }
    }

    #[test]
    fn names_may_be_typed_with_dots() {
        assert_eq!(entry("ubuntu-24.04"), entry("ubuntu-24-04"));
        assert!(entry("debian-12").is_some());
        assert!(entry("plan-9").is_none());
    }
}
