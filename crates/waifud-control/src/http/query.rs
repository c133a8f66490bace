//! Query parameters: each is taken once by its name, and a name that nobody takes is refused.

use axum::extract::FromRequestParts;
use axum::extract::Query;
use axum::http::request::Parts;
use waifud_api::Problem;
use waifud_types::Revision;

use super::Refusal;
use crate::pagination::PageRequest;
use crate::problems;

/// The parameters of a request.
#[derive(Clone, Debug)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|Query(pairs)| Self(pairs))
            .map_err(|_| {
                problems::bad_query(
                    "query",
                    "the query can't be read",
                    "write key=value&key=value",
                )
                .into()
            })
    }
}

impl Params {
    /// Every value of a parameter.
    pub fn all(&mut self, name: &str) -> Vec<String> {
        self.0
            .extract_if(.., |(key, _)| key == name)
            .map(|(_, value)| value)
            .collect()
    }

    /// The value of a parameter that may be there once.
    pub fn one(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(problems::bad_query(
                name,
                format!("{name} is there twice"),
                "send it once",
            ));
        }
        Ok(values.pop())
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.one(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(_) => Err(problems::bad_query(
                name,
                format!("{name} is not a truth value"),
                "true or false",
            )),
        }
    }

    /// A number.
    pub fn number(&mut self, name: &str) -> Result<Option<u32>, Problem> {
        self.one(name)?
            .map(|text| {
                text.parse().map_err(|_| {
                    problems::bad_query(name, format!("{name} is not a number"), "such as 100")
                })
            })
            .transpose()
    }

    /// A revision.
    pub fn revision(&mut self, name: &str) -> Result<Option<Revision>, Problem> {
        self.one(name)?
            .map(|text| {
                text.parse()
                    .map_err(|e: waifud_types::revision::RevisionError| {
                        problems::bad_query(
                            name,
                            e.to_string(),
                            "pass `revision` of an earlier answer",
                        )
                    })
            })
            .transpose()
    }

    /// `limit` and `cursor`.
    pub fn page(&mut self) -> Result<PageRequest, Problem> {
        let limit = self.number("limit")?;
        PageRequest::new(limit, self.one("cursor")?.as_deref())
    }

    /// Refuses what nobody took.
    pub fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(80).collect();
                Err(problems::bad_query(
                    &shown,
                    format!("{shown:?} is not a parameter of this request"),
                    "GET /v1/openapi.json lists the parameters",
                ))
            }
        }
    }
}
