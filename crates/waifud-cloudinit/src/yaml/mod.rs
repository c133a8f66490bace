//! YAML as cloud-init reads it: with the safe loader of PyYAML, which implements YAML 1.1.
//!
//! If this module accepted a document that PyYAML refuses, cloud-init would silently ignore it in the guest. If it refused
//! a document that PyYAML accepts, that document could not be used. So the stages follow PyYAML's. [`strict`] and
//! [`compose`] build nodes from the events of a port of libyaml (by PyYAML's author, with the same scanner). [`resolve`]
//! assigns tags to plain scalars. [`construct`] refuses nodes without a Python value. `tests/documents/pyyaml.rs` compares
//! the result with the real loader.

mod compose;
mod construct;
mod node;
mod resolve;
mod scalars;
mod strict;

pub(crate) use node::{Document, Node};

/// Why a document is refused, and where. Never quotes the document, which may contain secrets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct YamlError {
    /// From 1.
    pub(crate) line: u64,
    /// From 1.
    pub(crate) column: u64,
    pub(crate) reason: &'static str,
}

/// Reads a text with at most one document.
pub(crate) fn load(text: &str) -> Result<Document, YamlError> {
    let mut document = compose::compose(text)?;
    construct::check(&mut document)?;
    Ok(document)
}
