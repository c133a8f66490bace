//! Problems that any request can have: a missing object, an invalid name, number, label, parameter or header. The others
//! are beside their nouns: `instances/problems.rs`, `images/problems.rs` and so on. Codes are for scripts and are stable.

use waifud_api::Problem;

/// No such thing.
pub fn not_found(kind: &str, name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(404, "not-found", format!("there is no {kind} {shown:?}")).hint(match kind {
        "instance" => "waifuctl list shows what there is".to_owned(),
        "download" => "waifuctl template list shows what is on its way, too".to_owned(),
        "template" | "node" | "network" | "token" => {
            format!("waifuctl {kind} list shows what there is")
        }
        _ => format!("list what there is: GET /v1/{kind}s"),
    })
}

/// The text is no name.
pub fn bad_name(field: &str, error: &waifud_types::name::NameError) -> Problem {
    Problem::new(422, "invalid-name", error.to_string())
        .field(field)
        .hint("use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit: web-1")
}

/// A number out of its range.
pub fn out_of_range(
    field: &str,
    what: &str,
    least: impl std::fmt::Display,
    most: impl std::fmt::Display,
) -> Problem {
    Problem::new(422, "out-of-range", format!("{what} is out of range"))
        .field(field)
        .hint(format!("from {least} to {most}"))
}

/// A label that can't be stored or searched for.
pub fn bad_label(key: &str) -> Problem {
    let shown: String = key.chars().take(80).collect();
    Problem::new(422, "invalid-label", format!("label {shown:?} can't be used"))
        .field("labels")
        .hint("keys: 1 to 63 of a-z, A-Z, 0-9 and -_./; values: up to 255 characters without control characters")
}

/// Too many of something.
pub fn too_many(field: &str, most: usize) -> Problem {
    Problem::new(422, "too-many", format!("more than {most} are not taken"))
        .field(field)
        .hint("send fewer")
}

/// A query parameter that can't be understood.
pub fn bad_query(field: &str, why: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new(400, "invalid-query", why)
        .field(field)
        .hint(hint)
}

/// A header that can't be understood.
pub fn bad_header(field: &str, why: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new(400, "invalid-header", why)
        .field(field)
        .hint(hint)
}
