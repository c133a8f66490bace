//! For tests of configuration files: compares a type with its section in docs/reference/config.md, and checks refusals.

use std::fmt::{Debug, Display};

use serde::de::DeserializeOwned;

/// The section of `file` on the page has an example with every key, and a table with every key and the value
/// in the example. Returns the example.
///
/// # Panics
/// The page and the type differ.
#[track_caller]
#[expect(
    clippy::unwrap_used,
    reason = "only tests call it, and they stop at the first surprise"
)]
pub fn documented<C: DeserializeOwned + Debug>(page: &str, file: &str) -> String {
    let title = format!("{file}\n");
    let section = page
        .split("\n## ")
        .find(|text| text.starts_with(&title))
        .unwrap();
    let (_, example) = section.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    // serde lists all keys in the error about an unknown one.
    let error = toml::from_str::<C>("no-key = 1").unwrap_err();
    let (_, keys) = error.message().split_once("expected one of ").unwrap();
    let keys: Vec<&str> = keys.split(", ").map(|key| key.trim_matches('`')).collect();
    let set: toml::Table = example.parse().unwrap();
    for key in &keys {
        assert!(set.contains_key(*key), "the example lacks {key}");
    }
    let (_, table) = section.split_once("|---|---|---|---|\n").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|row| row.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), keys.len());
    for row in rows {
        let key = row[1].trim_matches('`');
        assert!(keys.contains(&key), "the table has {key}");
        // If the default is a value, the example contains the same value.
        if row[3].starts_with('`') {
            assert_eq!(row[3].trim_matches('`'), set[key].to_string(), "{key}");
        }
    }
    example.to_owned()
}

/// Each of these texts is refused with an error that contains the words beside it.
///
/// # Panics
/// One is not.
#[track_caller]
#[expect(
    clippy::unwrap_used,
    reason = "only tests call it, and they stop at the first surprise"
)]
pub fn refused<C, E: Display>(parse: impl Fn(&str) -> Result<C, E>, texts: &[(&str, &str)]) {
    for (text, words) in texts {
        let error = format!("{:#}", parse(text).err().unwrap());
        assert!(error.contains(words), "{text}: {error}");
    }
}
