//! Checks for each kind of user-data without parts: cloud-config, `#!` scripts, boothooks, includes, part handlers, templates and JSON patches. They
//! follow `cloudinit/handlers/` and `cloudinit/user_data.py`.

use super::error::UserDataError;
use super::kind::{UserDataKind, kind_of};
use crate::yaml::{self, Document};

type Checked = Result<(), UserDataError>;

fn not_used(line: usize, reason: &'static str) -> UserDataError {
    UserDataError::NotUsed { line, reason }
}

/// Checks `text` as user-data of the given kind, which has no parts.
pub(super) fn check(kind: UserDataKind, text: &str) -> Checked {
    match kind {
        UserDataKind::Empty => Ok(()),
        UserDataKind::CloudConfig => cloud_config(text).map(drop),
        UserDataKind::CloudConfigPatch => json_patch(text),
        UserDataKind::Script => script(text, 1),
        UserDataKind::Include => include(text),
        UserDataKind::Boothook => boothook(text),
        UserDataKind::PartHandler => part_handler(text),
        UserDataKind::Jinja => jinja(text),
        UserDataKind::CloudConfigArchive | UserDataKind::Mime => {
            Err(not_used(1, "cloud-init does not expand several parts here"))
        }
    }
}

/// Parses a text that must be a YAML mapping, or have comments only.
pub(super) fn cloud_config(text: &str) -> Result<Document, UserDataError> {
    let document = yaml::load(text)?;
    match document.root() {
        None => Ok(document),
        Some(root) if root.is("map") || root.is("null") => Ok(document),
        Some(_) => Err(UserDataError::WrongShape {
            wanted: "a mapping of keys to values",
        }),
    }
}

/// cloud-init writes a script to a file and executes it, so the kernel must find `#!` and an interpreter at its beginning.
/// `line` is the line of that beginning.
pub(super) fn script(text: &str, line: usize) -> Checked {
    let Some(rest) = text.strip_prefix("#!") else {
        let reason = "a script must begin with #! and an interpreter, with nothing before it";
        return Err(not_used(line, reason));
    };
    let interpreter = rest.lines().next().unwrap_or("").trim();
    if interpreter.starts_with('/') {
        Ok(())
    } else {
        Err(not_used(
            line,
            "#! needs the full path of an interpreter, for example #!/bin/sh",
        ))
    }
}

/// A script after the first line. cloud-init removes that line only if it is in lower case and at the very beginning.
fn boothook(text: &str) -> Checked {
    let Some(rest) = text.strip_prefix("#cloud-boothook") else {
        let reason = "#cloud-boothook must be the first line, in lower case";
        return Err(not_used(1, reason));
    };
    let hook = rest.trim_start();
    let before = rest.len() - hook.len();
    let line = 1 + rest.bytes().take(before).filter(|b| *b == b'\n').count();
    if hook.is_empty() {
        return Ok(());
    }
    script(hook, line)
}

/// URLs, one per line; the first may follow `#include` on its line.
fn include(text: &str) -> Checked {
    let mut any = false;
    for (index, line) in text.lines().enumerate() {
        let lower = line.to_ascii_lowercase();
        let prefix = ["#include-once", "#include"]
            .into_iter()
            .find(|prefix| lower.starts_with(prefix));
        let address = line.get(prefix.map_or(0, str::len)..).unwrap_or("").trim();
        if address.is_empty() || address.starts_with('#') {
            continue;
        }
        let lower = address.to_ascii_lowercase();
        let known = ["http://", "https://", "file://", "ftp://", "ftps://", "/"];
        if !known.iter().any(|start| lower.starts_with(start)) {
            return Err(not_used(
                index + 1,
                "#include needs URLs that begin with http://, https:// or file://",
            ));
        }
        any = true;
    }
    if any {
        Ok(())
    } else {
        Err(not_used(1, "#include has no URL"))
    }
}

/// Python code with the two functions that cloud-init calls.
fn part_handler(text: &str) -> Checked {
    for name in ["list_types", "handle_part"] {
        if !text.contains(name) {
            let reason = "a part handler must define list_types() and handle_part()";
            return Err(not_used(1, reason));
        }
    }
    Ok(())
}

/// A template of a script or of cloud-config.
fn jinja(text: &str) -> Checked {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let engine = first
        .strip_prefix("##")
        .and_then(|rest| rest.trim_start().split_once(':'))
        .map(|(_, engine)| engine.trim().to_ascii_lowercase());
    if engine.as_deref() != Some("jinja") {
        let reason = "a template must begin with the line: ## template: jinja";
        return Err(not_used(1, reason));
    }
    let start = rest.trim_start();
    // An expression may render to anything.
    if start.is_empty() || start.starts_with('{') {
        return Ok(());
    }
    let line = 2 + rest
        .bytes()
        .take(rest.len() - start.len())
        .filter(|b| *b == b'\n')
        .count();
    match kind_of(start) {
        Ok(UserDataKind::CloudConfig | UserDataKind::CloudConfigPatch) => Ok(()),
        Ok(UserDataKind::Script) if line == 2 && rest.starts_with("#!") => Ok(()),
        Ok(UserDataKind::Script) => Err(not_used(
            line,
            "the script must directly follow the template's first line",
        )),
        _ => Err(not_used(
            line,
            "a template must continue with #cloud-config or with #! and an interpreter",
        )),
    }
}

/// Checks a JSON patch (RFC 6902): a list of operations.
fn json_patch(text: &str) -> Checked {
    let start = text.trim_start();
    let before = text.len() - start.len();
    let Some(json) = start.strip_prefix("#cloud-config-jsonp") else {
        return Err(not_used(1, "#cloud-config-jsonp must be in lower case"));
    };
    let first = 1 + text.bytes().take(before).filter(|b| *b == b'\n').count();
    let operations: Vec<serde_json::Map<String, serde_json::Value>> = serde_json::from_str(json)
        .map_err(|error| {
            let reason = "the patch is not a JSON list of operations";
            not_used(first + error.line().saturating_sub(1), reason)
        })?;
    for operation in &operations {
        let text = |key: &str| operation.get(key).and_then(serde_json::Value::as_str);
        let has = |key: &str| operation.contains_key(key);
        let complete = match text("op") {
            Some("add" | "replace" | "test") => has("value"),
            Some("move" | "copy") => text("from").is_some(),
            Some("remove") => true,
            _ => false,
        };
        let path = text("path").is_some_and(|path| path.is_empty() || path.starts_with('/'));
        if !(complete && path) {
            let reason = "an operation of the patch lacks op, path, value or from (RFC 6902)";
            return Err(not_used(first, reason));
        }
    }
    Ok(())
}
