//! Problems that any request can cause: a missing object, or an invalid name, number, label, parameter or header. The others
//! are next to the code that they belong to: `instances/problems.rs`, `images/problems.rs` and so on. Codes are stable: scripts rely on them.

use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction, HintKind};
use waifud_types::Name;

/// The named object does not exist.
pub fn not_found(kind: &str, name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    let problem = Problem::new(404, "not-found", format!("there is no {kind} {shown:?}"));
    match HintKind::named(kind) {
        Some(kind) => problem.hint(Hint::on_kind(&HintAction::List, kind)),
        None => problem,
    }
}

/// Some of `count` names, and how many more there are: `web, db and 3 more`.
pub fn list_names(shown: &[Name], count: u64) -> String {
    let names: Vec<_> = shown.iter().map(Name::as_str).collect();
    let names = names.join(", ");
    match count.saturating_sub(shown.len() as u64) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// The text is not a valid name.
pub fn bad_name(field: &str, error: &waifud_types::name::NameError) -> Problem {
    Problem::new(422, "invalid-name", error.to_string())
        .field(field)
        .hint("use 1 to 63 characters of a-z, 0-9 and -; begin and end with a letter or digit, for example web-1")
}

/// A number is out of its range.
pub fn out_of_range(
    field: &str,
    what: &str,
    least: impl std::fmt::Display,
    most: impl std::fmt::Display,
) -> Problem {
    Problem::new(422, "out-of-range", format!("{what} is out of range"))
        .field(field)
        .hint(format!("use a value from {least} to {most}"))
}

/// A label has an invalid key or value.
pub fn bad_label(key: &str) -> Problem {
    let shown: String = key.chars().take(80).collect();
    Problem::new(422, "invalid-label", format!("label {shown:?} is invalid"))
        .field("labels")
        .hint("keys have 1 to 63 characters of a-z, A-Z, 0-9 and -_./; values have at most 255 characters and no control characters")
}

/// A list has too many entries.
pub fn too_many(field: &str, most: usize) -> Problem {
    Problem::new(
        422,
        "too-many",
        format!("at most {most} entries are allowed"),
    )
    .field(field)
    .hint("send fewer entries")
}

/// A query parameter is invalid.
pub fn bad_query(field: &str, why: impl Into<String>, hint: impl Into<Hint>) -> Problem {
    Problem::new(400, "invalid-query", why)
        .field(field)
        .hint(hint)
}

/// A header is invalid.
pub fn bad_header(field: &str, why: impl Into<String>, hint: impl Into<Hint>) -> Problem {
    Problem::new(400, "invalid-header", why)
        .field(field)
        .hint(hint)
}
