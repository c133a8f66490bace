//! Parses YAML with one or several descriptions; errors name the location.

use serde_saphyr::{Error, options};

use super::nearest::nearest;
use super::{Description, schema};
use crate::failure::Failure;

/// A description and its name in errors.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    /// The description.
    pub description: Description,
    /// `web.yaml`, or `web.yaml, document 2`.
    pub label: String,
}

/// Parses all documents of `text`, the content of `file`.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Failure> {
    // A snippet could contain a password.
    let options = options! { with_snippet: false };
    let all: Vec<Description> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| refuse(file, &error))?;
    if all.is_empty() {
        return Err(Failure::input(
            "no-description",
            format!("{file} does not contain a description"),
        )
        .field("--file")
        .hint("write at least a template, for example template: debian-12"));
    }
    let several = all.len() > 1;
    Ok(all
        .into_iter()
        .enumerate()
        .map(|(index, description)| Document {
            description,
            label: if several {
                format!("{file}, document {}", index + 1)
            } else {
                file.to_owned()
            },
        })
        .collect())
}

fn refuse(file: &str, error: &Error) -> Failure {
    let place = error.location().map_or_else(String::new, |at| {
        format!(", line {}, column {}", at.line(), at.column())
    });
    let error = error.without_snippet();
    if let Error::SerdeUnknownField {
        field, expected, ..
    } = error
    {
        let hint = match nearest(field, expected) {
            Some(name) => format!("did you mean {name}?"),
            None => format!("known fields: {}", expected.join(", ")),
        };
        let hint = match schema::elsewhere(field) {
            Some(place) => place.to_owned(),
            None => hint,
        };
        return Failure::input(
            "unknown-field",
            format!("{file}{place}: unknown field {field:?}"),
        )
        .field(field)
        .hint(hint);
    }
    let why = error.to_string();
    let why = why.lines().next().unwrap_or_default();
    // The location is printed before the message.
    let why = why.split(" at line ").next().unwrap_or(why);
    let why: String = why.chars().take(200).collect();
    Failure::input("invalid-description", format!("{file}{place}: {why}"))
        .field("--file")
        .hint("waifuctl schema instance prints all fields; waifuctl show NAME -o yaml prints an example")
}
