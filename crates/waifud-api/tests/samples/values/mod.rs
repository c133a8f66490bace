//! The samples: values of every type on the wire, as this version writes them.

mod agent;
mod codes;
mod firewall;
mod instances;
mod metadatad;
mod nodes;
mod objects;

use std::fmt::Debug;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use waifud_api::Page;
use waifud_types::{Digest, Timestamp};

pub const PUBLIC_KEY: &str = "bmV2ZXIgdXNlIHRoaXMga2V5IGZvciBhbnl0aGluZyE=";
pub const INSTANCE: &str = "0198d2a8-1111-7000-8000-00000000000a";
pub const NODE: &str = "0198d2a8-2222-7000-8000-00000000000b";
pub const REVISION: &str = "000000ab.7";

/// A type on the wire with its samples.
pub struct Kind {
    /// Name of the type, as in the OpenAPI document.
    pub name: &'static str,
    /// Whether its readers ignore fields that they do not know. Requests of users are refused instead.
    pub tolerant: bool,
    /// Whether a sample is a list of values of the type.
    pub list: bool,
    /// Name and JSON of each sample; the name is empty if there is only one.
    pub samples: Vec<(String, Value)>,
    /// Reads and writes a value with the types of this version.
    pub rewrite: fn(&Value) -> Result<Value, serde_json::Error>,
}

impl Kind {
    /// A response, or a message between waifud and its nodes.
    fn of<T: Serialize + DeserializeOwned>(
        name: &'static str,
        samples: impl IntoIterator<Item = (&'static str, T)>,
    ) -> Self {
        let json = |(case, sample): (&str, T)| {
            let json = serde_json::to_value(sample).unwrap();
            (case.to_owned(), json)
        };
        Self {
            name,
            tolerant: true,
            list: false,
            samples: samples.into_iter().map(json).collect(),
            rewrite: |json| serde_json::to_value(T::deserialize(json)?),
        }
    }

    fn one<T: Serialize + DeserializeOwned>(name: &'static str, sample: T) -> Self {
        Self::of(name, [("", sample)])
    }

    /// All values of an enum.
    fn values<T: Serialize + DeserializeOwned>(
        name: &'static str,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            list: true,
            ..Self::one(name, values.into_iter().collect::<Vec<T>>())
        }
    }

    /// All values of an enum with codes. Readers show the text beside a code if they do not know it or one of its fields.
    fn codes<T: Serialize + DeserializeOwned>(
        name: &'static str,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            tolerant: false,
            ..Self::values(name, values)
        }
    }

    /// The body of a user's request.
    fn request<T: Serialize + DeserializeOwned>(
        name: &'static str,
        samples: impl IntoIterator<Item = (&'static str, T)>,
    ) -> Self {
        Self {
            tolerant: false,
            ..Self::of(name, samples)
        }
    }

    /// A page of a list with one item.
    fn page<T: Serialize + DeserializeOwned>(name: &'static str, item: T) -> Self {
        let page = Page {
            items: vec![item],
            next: Some("d2Vi".to_owned()),
            revision: parse(REVISION),
        };
        Self::one(name, page)
    }
}

/// All types.
pub fn all() -> Vec<Kind> {
    [
        agent::kinds(),
        codes::kinds(),
        firewall::kinds(),
        instances::kinds(),
        metadatad::kinds(),
        nodes::kinds(),
        objects::kinds(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn parse<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "for fields that are optional")]
fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn texts<C: FromIterator<String>>(texts: &[&str]) -> C {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn map<K: FromStr<Err: Debug> + Ord, V: From<String>>(
    entries: &[(&str, &str)],
) -> std::collections::BTreeMap<K, V> {
    let entry = |(key, value): &(&str, &str)| (parse(key), (*value).to_owned().into());
    entries.iter().map(entry).collect()
}

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

fn time(minute: u8) -> Timestamp {
    parse(&format!("2026-11-30T12:{minute:02}:00Z"))
}
