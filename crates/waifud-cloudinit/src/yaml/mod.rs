//! YAML as cloud-init reads it: with the safe loader of PyYAML, which implements YAML 1.1.
//!
//! A document that this module accepts and PyYAML refuses is silently dropped in the guest; one that only PyYAML
//! accepts could not be used. So the three stages follow PyYAML's: [`strict`]
//! and [`compose`] build nodes from the events of a port
//! of libyaml (written by PyYAML's author, with the same scanner), [`resolve`] gives plain scalars their tag, and
//! [`construct`] refuses what has no Python value. `tests/documents/pyyaml.rs` compares them with the real loader.

mod compose;
mod construct;
mod node;
mod resolve;
mod scalars;
mod strict;

pub(crate) use node::{Document, Node};

/// Why a document is refused, and where. Never quotes the document, which may hold secrets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct YamlError {
    /// From 1.
    pub(crate) line: u64,
    /// From 1.
    pub(crate) column: u64,
    pub(crate) reason: &'static str,
}

/// Reads `text`, which is one document at most.
pub(crate) fn load(text: &str) -> Result<Document, YamlError> {
    let mut document = compose::compose(text)?;
    construct::check(&mut document)?;
    Ok(document)
}
