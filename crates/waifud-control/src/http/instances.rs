//! `/v1/instances`.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use waifud_api::{CreateInstance, Instance, Page, Problem, UpdateInstance, Why};
use waifud_store::InstanceFilter;
use waifud_types::{InstanceState, Role, Secret};

use super::body::{JsonBytes, parse};
use super::headers::{etag, idempotency_key, if_match};
use super::peer::AuthenticatedUser;
use super::query::{PageParams, Params};
use super::refusal::Refusal;
use super::wait::wait;
use crate::instances::idempotency::IdempotencyKey;
use crate::instances::problems as instance_problems;
use crate::instances::read::{Goal, Waited};
use crate::{Control, problems};

/// The maximum number of label filters; an instance cannot have more labels.
const LABELS_MAX: usize = 64;

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

fn answer(status: StatusCode, instance: Instance) -> Response {
    (status, [(header::ETAG, etag(&instance))], Json(instance)).into_response()
}

/// The field of a request, as it is named in an instance.
fn field(path: &str) -> String {
    match path {
        "disk_bytes" => "spec.disks[0].size_bytes".to_owned(),
        "pool" => "spec.disks[0].pool".to_owned(),
        "template" | "cpus" | "memory_bytes" | "run" | "restart" | "priority" | "protected" => {
            format!("spec.{path}")
        }
        nested
            if ["placement", "nics", "publish"]
                .iter()
                .any(|part| nested.starts_with(part)) =>
        {
            format!("spec.{nested}")
        }
        other => other.to_owned(),
    }
}

/// Creates an instance.
#[utoipa::path(
    post, path = "/v1/instances", tag = "instances", operation_id = "create_instance",
    params(
        ("wait" = Option<String>, Query, description = "Wait at most this long, for example 30s, until the instance reaches `for`."),
        ("for" = Option<String>, Query, description = "`running` (the default; `stopped` when run is false) or `ready`."),
        ("dry_run" = Option<bool>, Query, description = "If true, the request is checked and nothing is created."),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeating the request with the same key returns the same answer for 24 hours."),
    ),
    request_body = CreateInstance,
    responses(
        (status = 201, description = "The instance is created durably.", body = Instance),
        (status = 200, description = "With `wait`: the instance has reached `for`.", body = Instance),
        (status = 202, description = "With `wait`: the instance has not reached `for` yet.", body = Instance),
        (status = 204, description = "With `dry_run`: the request is valid.", body = ()),
        (status = 409, description = "The name is taken, or the key was already used for another request.", body = Problem),
    )
)]
pub async fn create(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    mut params: Params,
    headers: HeaderMap,
    JsonBytes(bytes): JsonBytes,
) -> Result<Response, Refusal> {
    let wait = wait(&mut params)?;
    let goal = goal(&mut params)?;
    let dry_run = dry_run(&mut params)?;
    params.finish()?;
    let request: CreateInstance = parse(&bytes, field)?;
    if dry_run {
        control.check_create(request).await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let key = idempotency_key(&headers)?
        .map(|key| IdempotencyKey::new(&caller.principal, &key, "/v1/instances", &bytes));
    let created = control.create_instance(request, key, caller.cause).await?;
    let mut response = match wait {
        None => answer(StatusCode::CREATED, created.instance.clone()),
        Some(wait) => {
            let goal = goal.unwrap_or(default_goal(&created.instance));
            waited(
                control.wait_for(created.instance.id, goal, wait).await?,
                &created.instance,
            )?
        }
    };
    let location = format!("/v1/instances/{}", created.instance.id);
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if created.replayed {
        response
            .headers_mut()
            .insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn default_goal(instance: &Instance) -> Goal {
    if instance.spec.run {
        Goal::Running
    } else {
        Goal::Stopped
    }
}

/// The answer to a wait for any goal but the deletion.
fn waited(outcome: Waited, last: &Instance) -> Result<Response, Refusal> {
    match outcome {
        Waited::Reached(instance) => Ok(answer(StatusCode::OK, *instance)),
        Waited::NotYet(instance) => Ok(answer(StatusCode::ACCEPTED, *instance)),
        Waited::Gone => Err(instance_problems::deleted_meanwhile(&last.name).into()),
    }
}

fn dry_run(params: &mut Params) -> Result<bool, Problem> {
    match params.one("dry_run")?.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(problems::bad_query(
            "dry_run",
            "dry_run is neither true nor false",
            "use true or false",
        )),
    }
}

fn goal(params: &mut Params) -> Result<Option<Goal>, Problem> {
    match params.one("for")?.as_deref() {
        None => Ok(None),
        Some("running") => Ok(Some(Goal::Running)),
        Some("ready") => Ok(Some(Goal::Ready)),
        Some("stopped") => Ok(Some(Goal::Stopped)),
        Some("deleted") => Ok(Some(Goal::Gone)),
        Some(_) => Err(problems::bad_query(
            "for",
            "for is not a known state",
            "use running, ready, stopped or deleted",
        )),
    }
}

/// Lists instances by name.
#[utoipa::path(
    get, path = "/v1/instances", tag = "instances", operation_id = "list_instances",
    params(
        PageParams,
        ("state" = Option<String>, Query, description = "Only instances in this state; separate several states with commas."),
        ("node" = Option<String>, Query, description = "Only instances on this node."),
        ("template" = Option<String>, Query, description = "Only instances of this template."),
        ("label" = Option<String>, Query, description = "Only instances with this label, `key` or `key=value`. Can be repeated."),
        ("name" = Option<String>, Query, description = "Only the instance with this name."),
    ),
    responses((status = 200, description = "A page of instances.", body = Page<Instance>))
)]
pub async fn list(
    State(control): State<Control>,
    _: AuthenticatedUser,
    mut params: Params,
) -> Result<Json<Page<Instance>>, Refusal> {
    let page = params.page()?;
    let filter = InstanceFilter {
        states: states(&mut params)?,
        node: params.one("node")?,
        template: params.one("template")?,
        name: params.one("name")?,
        labels: params
            .all("label")
            .into_iter()
            .map(|label| match label.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (label, None),
            })
            .collect(),
    };
    params.finish()?;
    // Each is a term of the database query, whose length is limited.
    if filter.labels.len() > LABELS_MAX {
        return Err(problems::too_many("label", LABELS_MAX).into());
    }
    Ok(Json(control.instances(filter, page).await?))
}

fn states(params: &mut Params) -> Result<Vec<InstanceState>, Problem> {
    let given = params.all("state");
    let words: BTreeSet<_> = given.iter().flat_map(|value| value.split(',')).collect();
    words
        .into_iter()
        .map(|word| {
            InstanceState::ALL
                .into_iter()
                .find(|state| state.as_str() == word)
                .ok_or_else(|| {
                    let all: Vec<_> = InstanceState::ALL
                        .iter()
                        .map(|state| state.as_str())
                        .collect();
                    problems::bad_query(
                        "state",
                        "state is not the state of an instance",
                        all.join(", "),
                    )
                })
        })
        .collect()
}

/// Shows one instance; with `wait`, after it has reached a state.
#[utoipa::path(
    get, path = "/v1/instances/{name}", tag = "instances", operation_id = "show_instance",
    params(
        ("name" = String, Path, description = "The instance's name or id."),
        ("wait" = Option<String>, Query, description = "Wait at most this long, for example 30s, until the instance reaches `for`."),
        ("for" = Option<String>, Query, description = "`running` (the default), `ready`, `stopped` or `deleted`."),
    ),
    responses(
        (status = 200, description = "The instance; with `wait`: it has reached `for`.", body = Instance),
        (status = 202, description = "With `wait`: the instance has not reached `for` yet.", body = Instance),
    )
)]
pub async fn show(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
    mut params: Params,
) -> Result<Response, Refusal> {
    let wait = wait(&mut params)?;
    let goal = goal(&mut params)?;
    params.finish()?;
    let instance = control.instance(&name).await?;
    let Some(wait) = wait else {
        return Ok(answer(StatusCode::OK, instance));
    };
    let goal = goal.unwrap_or(default_goal(&instance));
    let outcome = control.wait_for(instance.id, goal, wait).await?;
    match outcome {
        Waited::Gone if goal == Goal::Gone => Ok(answer(StatusCode::OK, instance)),
        Waited::Gone => Err(Refusal(problems::not_found("instance", &name))),
        outcome => waited(outcome, &instance),
    }
}

/// Changes an instance.
#[utoipa::path(
    patch, path = "/v1/instances/{name}", tag = "instances", operation_id = "update_instance",
    params(
        ("name" = String, Path, description = "The instance's name or id."),
        ("If-Match" = Option<String>, Header, description = "Only if the instance still has this ETag."),
        ("wait" = Option<String>, Query, description = "Wait at most this long until the node has applied the change."),
    ),
    request_body = UpdateInstance,
    responses(
        (status = 200, description = "The change is durable; with `wait`: it is applied.", body = Instance),
        (status = 202, description = "With `wait`: the change is not applied yet.", body = Instance),
        (status = 409, description = "The instance is being deleted.", body = Problem),
        (status = 412, description = "The instance has changed and has another ETag.", body = Problem),
    )
)]
pub async fn update(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    mut params: Params,
    headers: HeaderMap,
    JsonBytes(bytes): JsonBytes,
) -> Result<Response, Refusal> {
    let wait = wait(&mut params)?;
    params.finish()?;
    let if_match = if_match(&headers)?;
    let change: UpdateInstance = parse(&bytes, field)?;
    let instance = control
        .update_instance(&name, change, if_match, caller.cause)
        .await?;
    let Some(wait) = wait else {
        return Ok(answer(StatusCode::OK, instance));
    };
    let goal = Goal::Applied(instance.generation);
    waited(control.wait_for(instance.id, goal, wait).await?, &instance)
}

/// Deletes an instance, regardless of its state.
#[utoipa::path(
    delete, path = "/v1/instances/{name}", tag = "instances", operation_id = "delete_instance",
    params(
        ("name" = String, Path, description = "The instance's name or id."),
        ("If-Match" = Option<String>, Header, description = "Only if the instance still has this ETag."),
        ("wait" = Option<String>, Query, description = "Wait at most this long until the instance is destroyed."),
    ),
    responses(
        (status = 200, description = "The instance is destroyed; this is its last state.", body = Instance),
        (status = 202, description = "The deletion is durable; the node destroys the instance.", body = Instance),
        (status = 409, description = "The instance is protected against deletion.", body = Problem),
        (status = 412, description = "The instance has changed and has another ETag.", body = Problem),
    )
)]
pub async fn delete(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let wait = wait(&mut params)?;
    params.finish()?;
    let if_match = if_match(&headers)?;
    let deleted = control
        .delete_instance(&name, if_match, caller.cause)
        .await?;
    let (status, instance) = match wait {
        _ if deleted.removed => (StatusCode::OK, deleted.instance),
        None => (StatusCode::ACCEPTED, deleted.instance),
        Some(wait) => match control
            .wait_for(deleted.instance.id, Goal::Gone, wait)
            .await?
        {
            Waited::Gone => (StatusCode::OK, deleted.instance),
            Waited::Reached(now) | Waited::NotYet(now) => (StatusCode::ACCEPTED, *now),
        },
    };
    Ok(answer(status, instance))
}

/// Explains the state of an instance: its cause, what the instance waits for, and what to do.
#[utoipa::path(
    get, path = "/v1/instances/{name}/why", tag = "instances", operation_id = "why_instance",
    params(("name" = String, Path, description = "The instance's name or id.")),
    responses((status = 200, description = "The explanation.", body = Why))
)]
pub async fn why(
    State(control): State<Control>,
    caller: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Why>, Refusal> {
    let mut why = control.why(&name).await?;
    if caller.principal.role < Role::Operator
        && let Some(evidence) = &mut why.evidence
    {
        // Viewers may not read consoles, including the last lines in the evidence.
        evidence.console.clear();
    }
    Ok(Json(why))
}

/// Returns the user-data of an instance. For operators.
#[utoipa::path(
    get, path = "/v1/instances/{name}/user-data", tag = "instances", operation_id = "instance_user_data",
    params(("name" = String, Path, description = "The instance's name or id.")),
    responses((status = 200, description = "The user-data as it was sent; empty without any.", body = String, content_type = "text/plain"))
)]
pub async fn user_data(
    State(control): State<Control>,
    _: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let text = control
        .user_data(&name)
        .await?
        .map(Secret::into_inner)
        .unwrap_or_default();
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, text).into_response())
}
