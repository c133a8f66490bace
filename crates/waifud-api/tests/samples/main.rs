//! Samples of everything on the wire, one directory per version, so that a program of another version is understood.
//!
//! A file `VERSION/TYPE.CASE.json` is what that version writes. The files of this version are compared with the values in
//! [`values`]; those of all versions are read with the types of this version. CONTRIBUTING.md describes how to add one.
#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

mod coverage;
mod schema;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use self::schema::Schemas;
use self::values::Kind;

/// Where this version deliberately reads an older sample differently: file, JSON pointer, reason.
const CHANGED: [(&str, &str, &str); 0] = [];
/// Objects in messages whose readers refuse unknown fields, with the reason.
const STRICT_OBJECTS: [(&str, &str); 2] = [
    // The description is a request: a client that dropped a field would recreate the instance without it.
    ("InstanceDescription", "/description"),
    ("Page_InstanceDescription", "/items/*/description"),
];
/// Enums that messages have and of which a reader knows all values, because it cannot act on others. An older reader
/// refuses the complete message: add a value only if such readers cannot get it, for example with a feature of nodes.
const CLOSED_ENUMS: [&str; 13] = [
    "AddressFamily",
    "AddressSource",
    "Datasource",
    "DiskSpaceState",
    "FirewallAction",
    "FirewallDirection",
    "FirewallProtocol",
    "Firmware",
    "HypervisorKind",
    "ModuleResult",
    "Protocol",
    "RestartPolicy",
    "Role",
];
/// The name of a field and of a value that only a newer version knows.
const NEW: &str = "from-the-future";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples")
}

/// The directory of this version; patch releases do not change the wire.
fn present() -> String {
    let parts: Vec<_> = env!("CARGO_PKG_VERSION").split('.').take(2).collect();
    parts.join(".")
}

/// The files of a version, by name.
fn files(version: &str) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(directory().join(version)) else {
        return BTreeMap::new();
    };
    let file = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    entries.map(|entry| file(entry.unwrap().path())).collect()
}

#[test]
fn this_version_writes_its_samples() {
    let directory = directory().join(present());
    let mut written = BTreeMap::new();
    for kind in values::all() {
        for (case, json) in &kind.samples {
            let name = [kind.name, case, "json"]
                .into_iter()
                .filter(|part| !part.is_empty());
            let name = name.collect::<Vec<_>>().join(".");
            let text = serde_json::to_string_pretty(json).unwrap() + "\n";
            let twice = written.insert(name, text);
            assert_eq!(twice, None, "two samples of {} {case:?}", kind.name);
        }
    }
    let stored = files(&present());
    if std::env::var_os("WAIFUD_BLESS").is_some() {
        fs::create_dir_all(&directory).unwrap();
        for name in stored.keys().filter(|name| !written.contains_key(*name)) {
            fs::remove_file(directory.join(name)).unwrap();
        }
        for (name, text) in &written {
            fs::write(directory.join(name), text).unwrap();
        }
        return;
    }
    let names: BTreeSet<_> = written.keys().chain(stored.keys()).collect();
    let different = |name: &&&String| written.get(**name) != stored.get(**name);
    let different: Vec<_> = names.iter().filter(different).collect();
    assert!(
        different.is_empty(),
        "samples/{} differs from what this version writes: {different:?}. If readers of other versions understand the \
         change, run WAIFUD_BLESS=1 cargo test -p waifud-api --test samples, and review the differences",
        present()
    );
}

#[test]
fn samples_of_all_versions_keep_their_meaning() {
    let kinds = values::all();
    let mut errors = Vec::new();
    let mut read = 0;
    for version in fs::read_dir(directory()).unwrap() {
        let version = version.unwrap().file_name().into_string().unwrap();
        for (name, text) in files(&version) {
            let file = format!("{version}/{name}");
            let old: Value = serde_json::from_str(&text).unwrap();
            let kind = kinds
                .iter()
                .find(|kind| name.split('.').next() == Some(kind.name));
            let Some(kind) = kind else {
                errors.push(format!("{file}: no type has this name"));
                continue;
            };
            read += 1;
            match (kind.rewrite)(&old) {
                Err(error) => errors.push(format!("{file}: {error}")),
                Ok(new) => {
                    let changed = |pointer: &String| {
                        !CHANGED.iter().any(|(f, p, _)| (*f, *p) == (&file, pointer))
                    };
                    let lost = lost(&old, &new).into_iter().filter(changed);
                    errors.extend(lost.map(|pointer| format!("{file}: {pointer} is lost")));
                }
            }
        }
    }
    assert!(read > 0, "no samples");
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

/// JSON pointers of the fields of `old` that `new` does not have or has with another value.
fn lost(old: &Value, new: &Value) -> Vec<String> {
    let below = |name: &str, old: &Value, new: Option<&Value>| match new {
        Some(new) => {
            let lost = lost(old, new).into_iter();
            lost.map(|rest| format!("/{name}{rest}")).collect()
        }
        None => vec![format!("/{name}")],
    };
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let fields = old.iter();
            fields
                .flat_map(|(name, old)| below(name, old, new.get(name)))
                .collect()
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            let items = old.iter().enumerate();
            items
                .flat_map(|(i, old)| below(&i.to_string(), old, new.get(i)))
                .collect()
        }
        _ if old == new => Vec::new(),
        _ => vec![String::new()],
    }
}

#[test]
fn a_field_is_lost_if_it_is_absent_or_has_another_value() {
    let old = serde_json::json!({"a": 1, "b": [{"c": null}, 2], "d": [1]});
    let new = serde_json::json!({"b": [{"c": null, "new": 1}, 3], "d": [], "new": 1});
    assert_eq!(lost(&old, &new), ["/a", "/b/1", "/d"]);
    assert_eq!(lost(&old, &old), [""; 0]);
}

#[test]
fn unknown_fields_are_ignored_in_messages_and_refused_in_requests() {
    let mut strict = BTreeSet::new();
    for kind in values::all() {
        for (case, json) in &kind.samples {
            for pointer in objects(json) {
                let mut newer = json.clone();
                let object = newer.pointer_mut(&pointer).unwrap();
                object
                    .as_object_mut()
                    .unwrap()
                    .insert(NEW.to_owned(), NEW.into());
                let result = (kind.rewrite)(&newer);
                let top = if kind.list {
                    pointer.matches('/').count() == 1
                } else {
                    pointer.is_empty()
                };
                if !kind.tolerant {
                    assert!(!top || result.is_err(), "{}.{case}: {pointer}", kind.name);
                } else if let Ok(read) = result {
                    assert_eq!(
                        lost(json, &read),
                        [""; 0],
                        "{}.{case}: {pointer}",
                        kind.name
                    );
                } else {
                    strict.insert((kind.name, without_indices(&pointer)));
                }
            }
        }
    }
    // What is below a strict object is as strict.
    let below = |(kind, pointer): &(&str, String)| {
        STRICT_OBJECTS
            .iter()
            .any(|(k, p)| kind == k && pointer.starts_with(p))
    };
    let unexpected: Vec<_> = strict.iter().filter(|place| !below(place)).collect();
    assert!(
        unexpected.is_empty(),
        "unknown fields are refused in {unexpected:?}"
    );
    for (kind, pointer) in STRICT_OBJECTS {
        assert!(
            strict.contains(&(kind, pointer.to_owned())),
            "{kind} {pointer} is tolerant"
        );
    }
}

/// JSON pointers of all objects.
fn objects(json: &Value) -> Vec<String> {
    let below = |name: String, value| {
        let objects = objects(value).into_iter();
        objects
            .map(move |rest| format!("/{name}{rest}"))
            .collect::<Vec<_>>()
    };
    match json {
        Value::Object(fields) => {
            let inner = fields
                .iter()
                .flat_map(|(name, value)| below(name.clone(), value));
            std::iter::once(String::new()).chain(inner).collect()
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items
                .flat_map(|(index, item)| below(index.to_string(), item))
                .collect()
        }
        _ => Vec::new(),
    }
}

fn without_indices(pointer: &str) -> String {
    let part = |part: &str| {
        if part.parse::<usize>().is_ok() {
            "*".to_owned()
        } else {
            part.to_owned()
        }
    };
    pointer.split('/').map(part).collect::<Vec<_>>().join("/")
}

#[test]
fn messages_with_unknown_values_of_enums_are_readable() {
    let (mut open, mut closed) = (BTreeSet::new(), BTreeSet::new());
    let messages = |kind: &Kind| kind.tolerant && !kind.list;
    for kind in values::all().into_iter().filter(messages) {
        for (_, json) in &kind.samples {
            for schemas in Schemas::all() {
                for (name, pointer) in schemas.enums(kind.name, json) {
                    let mut newer = json.clone();
                    *newer.pointer_mut(&pointer).unwrap() = NEW.into();
                    let Ok(read) = (kind.rewrite)(&newer) else {
                        closed.insert(name);
                        continue;
                    };
                    let lost = lost(&newer, &read);
                    assert!(lost.iter().all(|other| *other == pointer), "{lost:?}");
                    open.insert(name);
                }
            }
        }
    }
    assert!(!open.is_empty());
    assert_eq!(closed, CLOSED_ENUMS.map(str::to_owned).into());
}
