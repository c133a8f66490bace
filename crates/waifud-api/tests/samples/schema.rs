//! Which parts of the schemas a sample has.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use utoipa::OpenApi;
use waifud_api::agent::{AgentReport, Hello, OwnNode, WatchFrame, Welcome};
use waifud_api::join::{JoinRequest, Joined};
use waifud_api::stream::StreamRefusal;

/// The agent protocol is not part of the OpenAPI document of users.
#[derive(OpenApi)]
#[openapi(components(schemas(
    Hello,
    Welcome,
    OwnNode,
    WatchFrame,
    AgentReport,
    JoinRequest,
    Joined,
    StreamRefusal
)))]
struct AgentProtocol;

/// Schemas by name.
pub struct Schemas(Map<String, Value>);

#[derive(Default)]
struct Seen {
    /// Names of schemas, `NAME.field` of fields with a value, `NAME=value` of values of enums.
    places: BTreeSet<String>,
    /// Name of the schema of each value of an enum, and its JSON pointer.
    enums: Vec<(String, String)>,
}

impl Schemas {
    /// The schemas of the user API and of the agent protocol.
    pub fn all() -> [Self; 2] {
        let users = include_str!("../../../../docs/reference/openapi.json");
        [
            Self::of(serde_json::from_str(users).unwrap()),
            Self::of(serde_json::to_value(AgentProtocol::openapi()).unwrap()),
        ]
    }

    fn of(mut document: Value) -> Self {
        match document["components"]["schemas"].take() {
            Value::Object(schemas) => Self(schemas),
            _ => Self(Map::new()),
        }
    }

    /// The parts that samples should have.
    pub fn places(&self) -> BTreeSet<String> {
        let mut places = BTreeSet::new();
        for (name, schema) in &self.0 {
            places.insert(name.clone());
            list(name, schema, &mut places);
        }
        places
    }

    /// The parts that the value of a type has.
    pub fn seen(&self, name: &str, value: &Value) -> BTreeSet<String> {
        self.walk_from(name, value).places
    }

    /// Names of the enums in the value of a type, with the JSON pointer of each.
    pub fn enums(&self, name: &str, value: &Value) -> Vec<(String, String)> {
        self.walk_from(name, value).enums
    }

    fn walk_from(&self, name: &str, value: &Value) -> Seen {
        let mut seen = Seen::default();
        if let Some(schema) = self.0.get(name) {
            assert!(
                self.fits(schema, value),
                "{name}: the schema does not allow {value}"
            );
            seen.places.insert(name.to_owned());
            self.walk((name, schema), ("", value), &mut seen);
        }
        seen
    }

    fn walk(
        &self,
        (at, schema): (&str, &Value),
        (pointer, value): (&str, &Value),
        seen: &mut Seen,
    ) {
        if let Some(name) = reference(schema) {
            seen.places.insert(name.to_owned());
            self.walk((name, &self.0[name]), (pointer, value), seen);
        }
        for (place, part) in alternatives(at, schema) {
            if self.fits(part, value) {
                self.walk((&place, part), (pointer, value), seen);
            }
        }
        if let Some(values) = schema["enum"].as_array() {
            seen.places.insert(format!("{at}={value}"));
            // Enums with one value are the tags of variants.
            if values.len() > 1 {
                seen.enums.push((at.to_owned(), pointer.to_owned()));
            }
        }
        for (name, field) in fields(schema) {
            let place = format!("{at}.{name}");
            if let Some(value) = value.get(name).filter(|value| has_content(value)) {
                let pointer = format!("{pointer}/{name}");
                self.walk((&place, field), (&pointer, value), seen);
                seen.places.insert(place);
            }
        }
        if let Some(items) = value.as_array() {
            for (index, item) in items.iter().enumerate() {
                let pointer = format!("{pointer}/{index}");
                self.walk(
                    (&format!("{at}[]"), &schema["items"]),
                    (&pointer, item),
                    seen,
                );
            }
        }
    }

    /// Whether the schema allows the value, as far as needed to choose between alternatives.
    fn fits(&self, schema: &Value, value: &Value) -> bool {
        let all = |parts: &Value| {
            parts
                .as_array()
                .is_none_or(|parts| parts.iter().all(|part| self.fits(part, value)))
        };
        let any = |parts: &Value| {
            parts
                .as_array()
                .is_none_or(|parts| parts.iter().any(|part| self.fits(part, value)))
        };
        let required = schema["required"].as_array();
        let types = match &schema["type"] {
            Value::Array(types) => types.clone(),
            Value::Null => Vec::new(),
            one => vec![one.clone()],
        };
        reference(schema).is_none_or(|name| self.fits(&self.0[name], value))
            && (types.is_empty() || types.iter().any(|kind| is_of_type(value, kind)))
            && all(&schema["allOf"])
            && any(&schema["oneOf"])
            && any(&schema["anyOf"])
            && schema["enum"]
                .as_array()
                .is_none_or(|values| values.contains(value))
            && required.is_none_or(|names| {
                names
                    .iter()
                    .all(|name| value.get(name.as_str().unwrap()).is_some())
            })
            && fields(schema)
                .all(|(name, field)| value.get(name).is_none_or(|value| self.fits(field, value)))
            && value
                .as_array()
                .is_none_or(|items| items.iter().all(|item| self.fits(&schema["items"], item)))
    }
}

/// Adds the parts of a schema, without those of schemas that it refers to.
fn list(at: &str, schema: &Value, places: &mut BTreeSet<String>) {
    for value in schema["enum"].as_array().into_iter().flatten() {
        places.insert(format!("{at}={value}"));
    }
    for (place, part) in alternatives(at, schema) {
        list(&place, part, places);
    }
    for (name, field) in fields(schema) {
        let place = format!("{at}.{name}");
        list(&place, field, places);
        places.insert(place);
    }
    // The items of pages are written into them, and also have schemas and samples of their own.
    if !at.starts_with("Page_") && schema["items"].is_object() {
        list(&format!("{at}[]"), &schema["items"], places);
    }
}

fn reference(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

fn alternatives<'a>(at: &str, schema: &'a Value) -> Vec<(String, &'a Value)> {
    let parts = ["allOf", "oneOf", "anyOf"]
        .into_iter()
        .filter_map(|key| schema[key].as_array());
    let number = |(index, part)| (format!("{at}|{index}"), part);
    parts
        .flat_map(|parts| parts.iter().enumerate().map(number))
        .collect()
}

fn fields(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

fn is_of_type(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

fn has_content(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}
