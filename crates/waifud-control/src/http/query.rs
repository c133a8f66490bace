//! Query parameters. A handler takes each parameter by its name; parameters that are left over are refused.

use axum::extract::FromRequestParts;
use axum::extract::Query;
use axum::http::request::Parts;
use waifud_api::Problem;
use waifud_types::Revision;

use super::Refusal;
use crate::pagination::PageRequest;
use crate::problems;

/// The parameters of lists, for the OpenAPI document; [`Params::page`] reads them.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "its fields only describe the parameters")]
pub struct PageParams {
    /// Items per page, 1 to 1000; 100 by default.
    limit: Option<u32>,
    /// `next` of the previous page.
    cursor: Option<String>,
}

/// The parameters of a request.
#[derive(Clone, Debug)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|Query(pairs)| Self(pairs))
            .map_err(|_| {
                problems::bad_query("query", "the query is not valid", "use key=value&key=value")
                    .into()
            })
    }
}

impl Params {
    /// All values of a parameter.
    pub fn all(&mut self, name: &str) -> Vec<String> {
        self.0
            .extract_if(.., |(key, _)| key == name)
            .map(|(_, value)| value)
            .collect()
    }

    /// The value of a parameter that is allowed once.
    pub fn one(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(problems::bad_query(
                name,
                format!("{name} is given more than once"),
                "send it once",
            ));
        }
        Ok(values.pop())
    }

    /// A boolean, false by default.
    pub fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.one(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(_) => Err(problems::bad_query(
                name,
                format!("{name} is not a boolean"),
                "use true or false",
            )),
        }
    }

    /// A number, if given.
    pub fn number(&mut self, name: &str) -> Result<Option<u32>, Problem> {
        self.one(name)?
            .map(|text| {
                text.parse().map_err(|_| {
                    problems::bad_query(
                        name,
                        format!("{name} is not a number"),
                        "use a number, for example 100",
                    )
                })
            })
            .transpose()
    }

    /// A revision, if given.
    pub fn revision(&mut self, name: &str) -> Result<Option<Revision>, Problem> {
        self.one(name)?
            .map(|text| {
                text.parse()
                    .map_err(|e: waifud_types::revision::RevisionError| {
                        problems::bad_query(
                            name,
                            e.to_string(),
                            "use `revision` of an earlier answer",
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

    /// Refuses parameters that were not taken.
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
