//! Completes the OpenAPI document: common problem responses, and limits of parameters and fields from the same constants
//! that the checks use.
//!
//! `xtask test` runs schemathesis with requests that the document allows and requests that it does not, and reports each
//! difference from what the handlers accept.

use serde_json::{Value, json};
use waifud_api::guest_command::{EXEC_TIMEOUT_MAX, PASSWORD_MAX};
use waifud_api::join;
use waifud_api::problem::PROBLEM_JSON;
use waifud_api::stream::LOG_LINES_MAX;
use waifud_types::InstanceState;
use waifud_types::firewall;
use waifud_types::spec::limits;

use super::capacity::SURVIVE_MAX;
use crate::auth::tokens;
use crate::events::event_builder;
use crate::instances::validate;
use crate::pagination::LIMIT_MAX;

/// The form of a [`waifud_types::Name`].
const NAME: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// 32 bytes in base64: the last digit before the padding has four bits.
const PUBLIC_KEY: &str = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$";
/// The form of a revision.
const REVISION: &str = "^[0-9a-fA-F]{8}\\.[0-9]{1,19}$";
/// Text without control characters.
const NO_CONTROL_CHARACTERS: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$";
/// A duration of `wait`, at most an hour.
const WAIT: &str = "^0*(([0-9]{1,6}|[12][0-9]{6}|3[0-5][0-9]{5}|3600000)ms|([0-9]{1,3}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)s?|([0-9]|[1-5][0-9]|60)m|[01]h)$";

/// Adds the common responses and the limits to the document that utoipa collected.
pub fn complete(mut document: Value) -> Value {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    for (path, operations) in paths.into_iter().flatten() {
        for (method, operation) in operations.as_object_mut().into_iter().flatten() {
            add_problem_responses(path, method, operation);
            parameters(operation);
        }
    }
    if let Some(schemas) = document.pointer_mut("/components/schemas") {
        fields(schemas);
    }
    document
}

/// Adds the problems that every operation of a kind may answer with, and gives problems their media type.
fn add_problem_responses(path: &str, method: &str, operation: &mut Value) {
    let open = operation["security"].as_array().is_some_and(Vec::is_empty);
    let body = operation.get("requestBody");
    let json = body.is_some_and(|body| !body["content"]["application/json"].is_null());
    let has_tag = |tag: &str| {
        let mut tags = operation["tags"].as_array().into_iter().flatten();
        tags.any(|other| other == tag)
    };
    let upgrades = operation["responses"].get("101").is_some();
    let guest_command = path.ends_with("/exec") || path.ends_with("/password");
    let mut common = vec![("500", "Internal error; see waifud's log.")];
    if !open {
        common.extend([
            ("400", "A parameter, a header or the body is invalid."),
            ("401", "The request has no valid token."),
            ("403", "The token's role is not sufficient."),
            (
                "429",
                "The token has too many open requests or streams, or too many invalid tokens were sent from this address.",
            ),
        ]);
    }
    if path.contains('{') {
        common.push(("404", "The object does not exist."));
    }
    if has_tag("streams") || guest_command {
        common.extend([
            (
                "409",
                "The instance is not running, no guest agent answers, or the node or the guest refuses.",
            ),
            (
                "504",
                "The instance's node is not connected, or did not answer in time.",
            ),
        ]);
    }
    if upgrades {
        common.push(("426", "The request has no Upgrade header."));
    }
    if body.is_some() {
        common.extend([
            ("408", "The body did not arrive in time."),
            ("413", "The body is too large."),
        ]);
    }
    if json {
        common.extend([
            ("415", "The body is not JSON."),
            ("422", "A field is invalid."),
        ]);
    }
    if method != "get" {
        common.push(("507", "There is not enough free space."));
    }
    let responses = operation.get_mut("responses");
    let Some(responses) = responses.and_then(Value::as_object_mut) else {
        return;
    };
    for (status, description) in common {
        responses.entry(status).or_insert_with(|| {
            let schema = json!({"$ref": "#/components/schemas/Problem"});
            json!({
                "description": description,
                "content": {"application/json": {"schema": schema}},
            })
        });
    }
    for (status, response) in responses {
        if status.starts_with(['4', '5'])
            && let Some(content) = response.get_mut("content")
            && let Some(content) = content.as_object_mut()
            && let Some(problem) = content.remove("application/json")
        {
            content.insert(PROBLEM_JSON.to_owned(), problem);
        }
    }
}

fn parameters(operation: &mut Value) {
    let events = operation["operationId"] == "events";
    let all = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut);
    for parameter in all.into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap_or_default().to_owned();
        let header = parameter["in"] == "header";
        if header {
            // A header cannot be null.
            restrict(parameter, "/schema", &json!({"type": "string"}));
        }
        restrict(parameter, "/schema", &parameter_limits(&name, events));
    }
}

fn parameter_limits(name: &str, events: bool) -> Value {
    let text = |pattern: &str| json!({"pattern": pattern});
    match name {
        "limit" => json!({"minimum": 1, "maximum": LIMIT_MAX}),
        "cursor" if !events => text("^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2,3})?$"),
        "cursor" | "since" | "Last-Event-ID" => text(REVISION),
        "object" => text(&format!(
            "^([^/]*|({})/[\\s\\S]*)$",
            event_builder::OBJECT_TYPES.join("|")
        )),
        "state" => {
            let states = InstanceState::ALL.map(InstanceState::as_str).join("|");
            text(&format!("^({states})(,({states}))*$"))
        }
        "wait" => text(WAIT),
        "for" => json!({"enum": ["running", "ready", "stopped", "deleted"]}),
        "source" => json!({"enum": ["console", "cloud-init"]}),
        "lines" => json!({"maximum": LOG_LINES_MAX}),
        "cpus" => json!({"minimum": 1, "maximum": limits::CPUS_MAX}),
        "memory_bytes" => {
            json!({"minimum": limits::MEMORY_MIN.bytes(), "maximum": limits::MEMORY_MAX.bytes()})
        }
        "disk_bytes" => {
            json!({"minimum": limits::DISK_MIN.bytes(), "maximum": limits::DISK_MAX.bytes()})
        }
        "survive" => json!({"minimum": 0, "maximum": SURVIVE_MAX}),
        "port" => json!({"minimum": 1, "maximum": u16::MAX}),
        "digest" => text("^(sha256:)?[0-9a-fA-F]{64}$"),
        "If-Match" => text("^(\\*|\"[0-9]{1,19}\"( *, *\"[0-9]{1,19}\")*)$"),
        "Idempotency-Key" => json!({"pattern": "^[\\x21-\\x7e]{1,255}$"}),
        _ => json!({}),
    }
}

/// Adds limits to the fields of requests.
fn fields(schemas: &mut Value) {
    let name = json!({"pattern": NAME});
    let port = json!({"minimum": 1, "maximum": u16::MAX});
    let labels = json!({
        "maxProperties": validate::LABELS_MAX,
        "propertyNames": {"type": "string", "pattern": "^[A-Za-z0-9._/-]{1,63}$"},
    });
    let label = json!({"pattern": NO_CONTROL_CHARACTERS, "maxLength": 255});
    let cpus = json!({"minimum": 1, "maximum": limits::CPUS_MAX});
    let size = |least: waifud_types::ByteSize, most: waifud_types::ByteSize| {
        json!({
            "type": ["integer", "null"],
            "format": "int64",
            "minimum": least.bytes(),
            "maximum": most.bytes(),
        })
    };
    let memory = size(limits::MEMORY_MIN, limits::MEMORY_MAX);
    let disk = size(limits::DISK_MIN, limits::DISK_MAX);
    let (least, most) = (
        tokens::LIFETIME_MIN.as_secs(),
        tokens::LIFETIME_MAX.as_secs(),
    );
    let limits = json!({
        "CreateInstance": {
            "name": name,
            "template": name,
            "pool": name,
            "cpus": cpus,
            "memory_bytes": memory,
            "disk_bytes": disk,
            "labels": labels,
            "ssh_keys": {"maxItems": validate::SSH_KEYS_MAX},
            "nics": {"maxItems": crate::network::nics::NICS_MAX},
        },
        "UpdateInstance": {
            "cpus": cpus,
            "memory_bytes": memory,
            "disk_bytes": disk,
            "labels": labels,
        },
        "UpdateNode": {"labels": labels},
        "CreateNic": {"network": name},
        "Publish": {"port": port, "guest_port": port},
        "SetFirewall": {"rules": {"maxItems": firewall::RULES_MAX}},
        "SetFirewallRule": {"ports": {"maxItems": firewall::PORTS_MAX}},
        "CreateTemplate": {"name": name},
        "CreateDownload": {"name": name},
        "CreateToken": {"expires_in_s": {"minimum": least, "maximum": most}, "name": name},
        "CreateJoinToken": {"expires_in_s": {"minimum": 60, "maximum": join::LIFETIME_MAX_S}},
        "CreateNetwork": {
            "name": name,
            "bridge": {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$"},
        },
        "CreateFabricClient": {"name": name, "public_key": {"pattern": PUBLIC_KEY}},
        "SetFabric": {"kind": {"enum": ["wireguard", "static", "none"]}},
        "AdoptInstance": {"name": name},
        "ExecRequest": {
            "command": {"minItems": 1, "prefixItems": [{"type": "string", "minLength": 1, "pattern": "^[^\\u0000]*$"}]},
            "timeout_s": {"minimum": 1, "maximum": EXEC_TIMEOUT_MAX},
        },
        "SetPassword": {
            "user": {"pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f:/-][^\\u0000-\\u001f\\u007f-\\u009f:/]*$", "maxLength": 256},
            "password": {"type": "string", "pattern": NO_CONTROL_CHARACTERS, "minLength": 1, "maxLength": PASSWORD_MAX},
        },
    });
    for (schema, fields) in limits.as_object().into_iter().flatten() {
        for (field, limits) in fields.as_object().into_iter().flatten() {
            restrict_field(schemas, &format!("/{schema}/properties/{field}"), limits);
        }
    }
    for schema in ["CreateInstance", "UpdateInstance", "UpdateNode"] {
        let values = format!("/{schema}/properties/labels/additionalProperties");
        restrict(schemas, &values, &label);
    }
    let words = "/ExecRequest/properties/command/items";
    restrict(schemas, words, &json!({"pattern": "^[^\\u0000]*$"}));
}

/// Adds limits to a field of a request. Those with a type replace a reference, to which no limits can be added.
fn restrict_field(schemas: &mut Value, path: &str, limits: &Value) {
    if limits.get("type").is_some()
        && let Some(found) = schemas.pointer_mut(path)
    {
        let description = ["/description", "/oneOf/0/description"]
            .into_iter()
            .find_map(|at| found.pointer(at).cloned());
        *found = json!({"description": description});
    }
    restrict(schemas, path, limits);
}

/// Adds limits to the schema at a JSON pointer (RFC 6901).
fn restrict(document: &mut Value, path: &str, limits: &Value) {
    let schema = document.pointer_mut(path).and_then(Value::as_object_mut);
    debug_assert!(schema.is_some(), "{path} is missing from the document");
    if let (Some(schema), Some(limits)) = (schema, limits.as_object()) {
        schema.extend(
            limits
                .iter()
                .map(|(key, limit)| (key.clone(), limit.clone())),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        crate::http::openapi().unwrap()
    }

    #[test]
    fn every_problem_has_its_media_type_and_every_operation_documents_400() {
        let mut seen = 0;
        for (path, operations) in document()["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let responses = operation["responses"].as_object().unwrap();
                for (status, response) in responses {
                    if status.starts_with(['4', '5']) {
                        let schema = &response["content"][PROBLEM_JSON]["schema"]["$ref"];
                        assert_eq!(
                            schema, "#/components/schemas/Problem",
                            "{method} {path} {status}"
                        );
                        seen += 1;
                    }
                }
                let open = operation["security"].as_array().unwrap().is_empty();
                assert!(open || responses.contains_key("400"), "{method} {path}");
            }
        }
        assert!(seen > 200, "{seen}");
    }

    #[test]
    fn properties_are_named_in_snake_case_and_sizes_end_in_bytes() {
        let document = document();
        let mut seen = 0;
        for (schema, contents) in document["components"]["schemas"].as_object().unwrap() {
            let properties = contents["properties"].as_object();
            for (name, property) in properties.into_iter().flatten() {
                let at = format!("{schema}.{name}");
                let snake = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                assert!(name.chars().all(snake), "{at}");
                assert!(name.starts_with(|c: char| c.is_ascii_lowercase()), "{at}");
                let description = property["description"].as_str().unwrap_or_default();
                let is_integer =
                    property["type"] == "integer" || property["type"] == json!(["integer", "null"]);
                if is_integer && description.to_lowercase().contains("bytes") {
                    assert!(name.ends_with("_bytes"), "{at}: {description}");
                }
                seen += 1;
            }
        }
        assert!(seen > 200, "{seen}");
    }

    #[test]
    fn limits_in_the_document_equal_those_of_the_checks() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        let cpus = &schemas["CreateInstance"]["properties"]["cpus"];
        assert_eq!(cpus["maximum"], limits::CPUS_MAX);
        let memory = &schemas["CreateInstance"]["properties"]["memory_bytes"];
        assert_eq!(memory["minimum"], limits::MEMORY_MIN.bytes(), "{memory}");
        assert!(memory["description"].as_str().unwrap().contains("GiB"));
        let labels = &schemas["UpdateNode"]["properties"]["labels"];
        assert_eq!(labels["maxProperties"], validate::LABELS_MAX, "{labels}");
        assert_eq!(labels["additionalProperties"]["maxLength"], 255, "{labels}");
        assert_eq!(
            labels["propertyNames"]["pattern"],
            "^[A-Za-z0-9._/-]{1,63}$"
        );
        let command = &schemas["ExecRequest"]["properties"]["command"];
        assert_eq!(command["minItems"], 1, "{command}");
        let mut by_name = std::collections::BTreeMap::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for operation in operations.as_object().unwrap().values() {
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let name = parameter["name"].as_str().unwrap().to_owned();
                    by_name.insert(name, (path.clone(), parameter["schema"].clone()));
                }
            }
        }
        assert_eq!(by_name["limit"].1["maximum"], LIMIT_MAX);
        assert_eq!(by_name["wait"].1["pattern"], WAIT);
        assert_eq!(by_name["for"].1["enum"][1], "ready");
        assert_eq!(by_name["If-Match"].1["type"], "string");
    }
}
