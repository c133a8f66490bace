//! The JSON Schema of a description, for editors and checks.

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::Description;

/// JSON Schema 2020-12 of a document.
pub fn schema() -> Value {
    let mut parts = Vec::new();
    Description::schemas(&mut parts);
    let definitions: Map<String, Value> = parts
        .into_iter()
        .map(|(name, part)| (name, local(serde_json::to_value(part).unwrap_or_default())))
        .collect();
    let mut root = local(serde_json::to_value(Description::schema()).unwrap_or_default());
    if let Some(root) = root.as_object_mut() {
        root.insert(
            "$schema".to_owned(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        root.insert("$defs".to_owned(), Value::Object(definitions));
    }
    root
}

/// Converts references of OpenAPI into those of a standalone schema.
fn local(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace("#/components/schemas/", "#/$defs/")),
        Value::Array(items) => Value::Array(items.into_iter().map(local).collect()),
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(key, value)| (key, local(value)))
                .collect(),
        ),
        other => other,
    }
}

/// Hints for names from the API or the command line.
pub fn elsewhere(field: &str) -> Option<&'static str> {
    Some(match field {
        "disk" | "disk_bytes" | "disk_size" => "write disks: [{size: 20G}]",
        "pool" => "write disks: [{pool: NAME}]",
        "memory_bytes" => "write memory: 2G",
        "mac" => "write nics: [{mac: 52:54:00:…}]",
        "node" | "require" | "spread" | "near" => "write it under placement:",
        "ssh_key" => "write ssh_keys: [KEY]",
        "start" => "write run: false to create it without starting it",
        _ => return None,
    })
}
