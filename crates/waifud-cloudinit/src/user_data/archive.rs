//! User-data in a `#cloud-config-archive`. Entries that cloud-init would ignore are refused.

use super::content_type::{is_of_image, kind_of_type};
use super::error::UserDataError;
use super::kind::{UserDataKind, kind_of};
use super::single;
use crate::yaml::{self, Document, Node};

/// Checks a `#cloud-config-archive`: a YAML list of strings, or of mappings with `content` and `type`.
pub(super) fn check(text: &str) -> Result<(), UserDataError> {
    let document = yaml::load(text)?;
    let Some(root) = document.root().filter(|root| !root.is("null")) else {
        return Ok(());
    };
    if !root.is("seq") {
        return Err(UserDataError::WrongShape { wanted: "a list" });
    }
    for (index, item) in document.items(root).enumerate() {
        entry(&document, item).map_err(|error| UserDataError::Part {
            number: index + 1,
            error: Box::new(error),
        })?;
    }
    Ok(())
}

/// Checks one entry of an archive.
fn entry(document: &Document, item: &Node) -> Result<(), UserDataError> {
    if item.is("str") {
        return of_archive(None, item.text().unwrap_or(""));
    }
    if !item.is("map") {
        return Err(UserDataError::of_part(
            "an entry must be a string or a mapping with content",
        ));
    }
    let of_type = match document.get(item, "type") {
        Some(node) if node.is("str") => node.text().filter(|text| !text.is_empty()),
        Some(node) if !node.is("null") => {
            return Err(UserDataError::of_part("type must be a string"));
        }
        _ => None,
    };
    if of_type.is_some_and(|of_type| !of_type.contains('/')) {
        return Err(UserDataError::of_part(
            "type must be a MIME type, for example text/cloud-config",
        ));
    }
    match document.get(item, "content") {
        None => Ok(()),
        Some(node) if node.is("str") => of_archive(of_type, node.text().unwrap_or("")),
        // Binary data is for a handler of the guest.
        Some(node) if node.is("binary") => Ok(()),
        Some(_) => Err(UserDataError::of_part("content must be a string")),
    }
}

/// Checks the content of an archive's entry. cloud-init does not expand entries: it ignores includes and archives there.
fn of_archive(of_type: Option<&str>, text: &str) -> Result<(), UserDataError> {
    if text.is_empty() {
        return Ok(());
    }
    let kind = match of_type {
        Some("text/x-shellscript") => Some(UserDataKind::Script),
        Some(of_type) => kind_of_type(of_type),
        None => match kind_of(text) {
            Ok(UserDataKind::Mime | UserDataKind::Empty) | Err(_) => {
                Some(UserDataKind::CloudConfig)
            }
            Ok(kind) => Some(kind),
        },
    };
    match kind {
        Some(UserDataKind::Include | UserDataKind::CloudConfigArchive) => {
            Err(UserDataError::of_part(
                "cloud-init ignores #include and archives inside an archive; use MIME",
            ))
        }
        Some(kind) => single::check(kind, text),
        None if of_type.is_some_and(is_of_image) => Ok(()),
        None => Err(UserDataError::of_part(
            "cloud-init does not support its type and would ignore it",
        )),
    }
}
