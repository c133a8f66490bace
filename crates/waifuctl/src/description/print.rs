//! Prints a description as YAML that parses to the same description.

use serde_saphyr::{options, ser_options, to_string_with_options};

use super::Description;
use crate::failure::Failure;

/// Prints one document. Multi-line strings are blocks if these preserve them exactly.
pub fn yaml(description: &Description) -> Result<String, Failure> {
    let pretty = written(description, false)?;
    if reads_back(&pretty, description) {
        return Ok(pretty);
    }
    let quoted = written(description, true)?;
    if reads_back(&quoted, description) {
        return Ok(quoted);
    }
    // JSON is valid YAML and can represent any string.
    serde_json::to_string_pretty(description)
        .map(|json| json + "\n")
        .map_err(|e| Failure::internal("output", e.to_string()))
}

fn written(description: &Description, quote: bool) -> Result<String, Failure> {
    let options = ser_options! { prefer_block_scalars: !quote, quote_all: quote };
    to_string_with_options(description, options)
        .map_err(|e| Failure::internal("output", e.to_string()))
}

fn reads_back(text: &str, description: &Description) -> bool {
    let options = options! { with_snippet: false };
    serde_saphyr::from_multiple_with_options::<Description>(text, options)
        .is_ok_and(|all| all.as_slice() == std::slice::from_ref(description))
}
