//! Query parameters. Each parameter is taken by its name; parameters that are left over are refused.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterIn};
use waifud_api::Problem;
use waifud_types::Revision;

use super::Refusal;
use crate::pagination::PageRequest;
use crate::problems;

/// Query parameters as a type, which is also their description in the OpenAPI document.
pub trait FromParams: Sized {
    /// Takes the parameters of this type.
    fn take(params: &mut Params) -> Result<Self, Problem>;
}

/// The query of a request. Parameters that are not in `T` are refused.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: FromParams> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let mut params = Params::from_request_parts(parts, state).await?;
        let value = T::take(&mut params)?;
        params.finish()?;
        Ok(Self(value))
    }
}

/// The parameters of two types together.
#[derive(Debug)]
pub struct Both<A, B>(pub A, pub B);

impl<A: FromParams, B: FromParams> FromParams for Both<A, B> {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        Ok(Self(A::take(params)?, B::take(params)?))
    }
}

impl<A: IntoParams, B: IntoParams> IntoParams for Both<A, B> {
    fn into_params(parameter_in: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let mut both = A::into_params(&parameter_in);
        both.extend(B::into_params(&parameter_in));
        both
    }
}

/// The query of a route without parameters.
#[derive(Debug)]
pub struct NoParams;

impl<S: Send + Sync> FromRequestParts<S> for NoParams {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        Params::from_request_parts(parts, state).await?.finish()?;
        Ok(Self)
    }
}

impl FromParams for PageRequest {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        let limit = params.number("limit")?;
        Self::new(limit, params.one("cursor")?.as_deref())
    }
}

/// The parameters of a request.
#[derive(Clone, Debug)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|pairs| Self(pairs.0))
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
                format!("the parameter `{name}` is given more than once"),
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
                format!("the parameter `{name}` is not a boolean"),
                "use true or false",
            )),
        }
    }

    /// A number, if given.
    pub fn number(&mut self, name: &str) -> Result<Option<u32>, Problem> {
        self.integer(name)
    }

    /// An integer of 64 bits.
    pub fn big_number(&mut self, name: &str) -> Result<Option<u64>, Problem> {
        self.integer(name)
    }

    fn integer<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        self.one(name)?
            .map(|text| {
                text.parse().map_err(|_| {
                    problems::bad_query(
                        name,
                        format!("the parameter `{name}` is not a number"),
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
