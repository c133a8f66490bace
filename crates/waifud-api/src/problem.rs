//! Errors in the API: RFC 9457 problem details with a code, a field and hints.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::hint::{self, Hint, HintKind};

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The body of every error response.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URI reference that identifies the problem type: `/problems/CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One sentence about the problem, without a full stop.
    pub title: String,
    /// The HTTP status code; 0 for errors of waifuctl itself.
    pub status: u16,
    /// Further explanation.
    pub detail: Option<String>,
    /// A stable code for programs, for example `disk-too-small`.
    pub code: String,
    /// The field of the request that caused the problem, for example `spec.disks[0].size_bytes`.
    pub field: Option<String>,
    /// The next steps for the user, in English: the texts of `hints`.
    pub hint: Option<String>,
    /// The next steps for the user, which each client words itself.
    #[serde(default)]
    pub hints: Vec<Hint>,
    /// Id of the request in waifud's log and events.
    pub request_id: Option<String>,
}

impl Problem {
    /// Creates a problem with a status, a code and one sentence.
    pub fn new(status: u16, code: &str, title: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{code}"),
            title: title.into(),
            status,
            detail: None,
            code: code.to_owned(),
            field: None,
            hint: None,
            hints: Vec::new(),
            request_id: None,
        }
    }

    /// Sets the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Hint>) -> Self {
        self.hints.push(hint.into());
        self.hint = hint::in_english(&self.hints);
        self
    }

    /// Names the object of hints that do not name one: the server knows it, and the client might not.
    #[must_use]
    pub fn about(mut self, kind: HintKind, name: &str) -> Self {
        for hint in &mut self.hints {
            hint.about(kind, name);
        }
        self.hint = hint::in_english(&self.hints);
        self
    }

    /// Sets the detail.
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
