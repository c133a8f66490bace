//! Errors on the wire: RFC 9457 problem details with a code, a field and a hint.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The body of every answer that is not a success.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URI reference for the kind of problem: `/problems/CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One sentence of facts, without a full stop.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// More, where one sentence is not enough.
    pub detail: Option<String>,
    /// A word for scripts, such as `disk-too-small`.
    pub code: String,
    /// The field of the request that is wrong, such as `spec.disks[0].size_bytes`.
    pub field: Option<String>,
    /// What to do next.
    pub hint: Option<String>,
    /// Names the request in waifud's log and events.
    pub request_id: Option<String>,
}

impl Problem {
    /// A problem with a code, a status and one sentence.
    pub fn new(status: u16, code: &str, title: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{code}"),
            title: title.into(),
            status,
            detail: None,
            code: code.to_owned(),
            field: None,
            hint: None,
            request_id: None,
        }
    }

    /// Names the field that is wrong.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says more.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)
    }
}

impl std::error::Error for Problem {}
