//! Every type, field and value on the wire has a sample.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::schema::Schemas;
use super::values::{self, Kind};

/// Schemas without samples here: they are types of waifud-control.
const ELSEWHERE: [&str; 4] = [
    // An Instance or a DryRun, which have samples.
    "CreateOutcome",
    "Health",
    "ProgressFrame",
    "Version",
];
/// Types of this crate that are serialized but are not bodies.
const NOT_BODIES: [(&str, &str); 4] = [
    ("EventQuery", "the query of a URL"),
    ("ListQuery", "the query of a URL"),
    ("RemoveNode", "the query of a URL"),
    ("ServerUrl", "in waifuctl's configuration"),
];
/// Types without a schema that occur in the samples of others.
const WITHIN_OTHERS: [&str; 9] = [
    "CloudInitEvent",
    "Held",
    "ImageTicket",
    "Observation",
    "Observed",
    "Page",
    "SliceKey",
    "StreamId",
    "Ticket",
];
/// Enums without a schema, with the JSON pointer of the tag in their first sample.
const WITHOUT_SCHEMA: [(&str, &str); 8] = [
    ("Verdict", "/0/code"),
    ("WaitReason", "/0/code"),
    ("HintAction", "/0/code"),
    ("HintWhen", "/0"),
    ("HintKind", "/0"),
    ("GuestCommand", "/do"),
    ("GuestAnswer", "/answer"),
    ("Observations", "/items/0/type"),
];

fn kind(name: &str) -> Kind {
    values::all()
        .into_iter()
        .find(|kind| kind.name == name)
        .unwrap()
}

/// The parts of the schemas that the samples have.
fn seen(schemas: &Schemas) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for kind in values::all() {
        for (_, json) in &kind.samples {
            let values = if kind.list {
                json.as_array().unwrap()
            } else {
                std::slice::from_ref(json)
            };
            for value in values {
                seen.extend(schemas.seen(kind.name, value));
            }
        }
    }
    seen
}

#[test]
fn every_schema_with_all_its_fields_and_values_has_a_sample() {
    for schemas in Schemas::all() {
        let seen = seen(&schemas);
        assert!(seen.len() > 100, "{seen:?}");
        let elsewhere = |place: &&String| {
            let name = place.split(['.', '=', '|', '[']).next();
            ELSEWHERE.iter().any(|other| name == Some(*other))
        };
        let missing = schemas.places();
        let missing: Vec<_> = missing
            .difference(&seen)
            .filter(|place| !elsewhere(place))
            .collect();
        assert!(missing.is_empty(), "without a sample: {missing:#?}");
    }
}

#[test]
fn every_variant_of_enums_without_a_schema_has_a_sample() {
    for (name, tag) in WITHOUT_SCHEMA {
        let kind = kind(name);
        let mut unknown = kind.samples[0].1.clone();
        *unknown.pointer_mut(tag).unwrap() = "?".into();
        let error = (kind.rewrite)(&unknown).unwrap_err().to_string();
        // "unknown variant `?`, expected one of `a`, `b`"
        let (_, expected) = error.split_once("expected").unwrap();
        let expected: BTreeSet<_> = expected.split('`').skip(1).step_by(2).collect();
        let samples: Vec<_> = kind
            .samples
            .iter()
            .map(|(_, json)| json.to_string())
            .collect();
        let has = |word: &&str| {
            samples
                .iter()
                .any(|text| text.contains(&format!("\"{word}\"")))
        };
        let missing: Vec<_> = expected.iter().filter(|word| !has(word)).collect();
        assert!(
            expected.len() > 1 && missing.is_empty(),
            "{name}: {missing:?} have no sample ({error})"
        );
    }
}

#[test]
fn every_serialized_type_of_this_crate_has_a_sample() {
    let mut known: BTreeSet<_> = Schemas::all().iter().flat_map(seen).collect();
    known.extend(values::all().iter().map(|kind| kind.name.to_owned()));
    known.extend(NOT_BODIES.map(|(name, _)| name.to_owned()));
    known.extend(WITHIN_OTHERS.map(str::to_owned));
    let mut types = BTreeSet::new();
    serialized_types(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut types,
    );
    assert!(types.len() > 80, "{types:?}");
    let missing: Vec<_> = types.difference(&known).collect();
    assert!(missing.is_empty(), "without a sample: {missing:?}");
}

/// Names of public types that derive `Serialize` or `Deserialize`.
fn serialized_types(directory: &Path, types: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            serialized_types(&path, types);
            continue;
        }
        let mut is_serialized = false;
        for line in fs::read_to_string(&path).unwrap().lines() {
            if line.starts_with("#[derive(") {
                is_serialized = line.contains("Serialize") || line.contains("Deserialize");
            } else if let Some(name) = declared(line) {
                if is_serialized {
                    types.insert(name.to_owned());
                }
                is_serialized = false;
            }
        }
    }
}

/// The name of the public struct or enum that the line declares.
fn declared(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ")?;
    let rest = rest
        .strip_prefix("struct ")
        .or_else(|| rest.strip_prefix("enum "))?;
    rest.split(|c: char| !c.is_alphanumeric()).next()
}

#[test]
fn declarations_are_found_with_their_names() {
    assert_eq!(declared("pub struct Page<T> {"), Some("Page"));
    assert_eq!(declared("pub enum Kind {"), Some("Kind"));
    assert_eq!(declared("struct Private;"), None);
}
