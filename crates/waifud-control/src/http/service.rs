//! `/v1/version`, `/v1/openapi.json` and `/healthz`.

use std::sync::OnceLock;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use waifud_types::Revision;

use super::body::Json;
use super::refusal::Refusal;
use crate::server::problems as server_problems;
use crate::{Control, ControlError};

/// The version of waifud.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the name on the wire")]
pub struct Version {
    /// The program's version.
    pub version: String,
    /// The version in the paths of the API.
    pub api: String,
    /// The version of the database schema.
    pub schema: u32,
    /// The incarnation of the database, with which revisions begin.
    pub incarnation: String,
}

/// The health of waifud.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always `ok`.
    pub status: String,
    /// The newest revision.
    pub revision: Revision,
}

/// Returns the API as OpenAPI 3.1.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "service", operation_id = "openapi",
    responses((status = 200, description = "This document.", content_type = "application/json", body = Object))
)]
pub async fn openapi() -> Result<Response, Refusal> {
    // Unauthenticated callers may ask, so the text is built only once.
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    let text = if let Some(text) = TEXT.get() {
        text.clone()
    } else {
        let text = super::openapi().map_err(|e| {
            ControlError::Inconsistent(format!("building the OpenAPI document failed: {e}"))
        })?;
        TEXT.get_or_init(|| text.to_string().into()).clone()
    };
    Ok((
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        text,
    )
        .into_response())
}

/// Returns the version of waifud.
#[utoipa::path(
    get, path = "/v1/version", tag = "service", operation_id = "version",
    responses((status = 200, description = "The version.", body = Version))
)]
pub async fn version(State(control): State<Control>) -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: "v1".to_owned(),
        schema: waifud_store::SCHEMA,
        incarnation: control.store().incarnation().to_string(),
    })
}

/// Checks that waifud answers and that its database can be read and written.
#[utoipa::path(
    get, path = "/healthz", tag = "service", operation_id = "healthz",
    responses((status = 200, description = "waifud is healthy.", body = Health), (status = 503, description = "The database cannot be written.", body = waifud_api::Problem))
)]
pub async fn healthz(State(control): State<Control>) -> Result<Json<Health>, Refusal> {
    let revision = control
        .store()
        .read(|tx| Ok::<_, ControlError>(tx.at(tx.newest_event()?)))
        .await?;
    if let Some(trouble) = control.database().await?.trouble {
        return Err(server_problems::database_unusable(&trouble).into());
    }
    Ok(Json(Health {
        status: "ok".to_owned(),
        revision,
    }))
}
