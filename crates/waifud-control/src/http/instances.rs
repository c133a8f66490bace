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
use super::query::Params;
use super::refusal::Refusal;
use super::wait::wait;
use crate::instances::create::IdempotencyKey;
use crate::instances::problems as instance_problems;
use crate::instances::read::{Goal, Waited};
use crate::{Control, problems};

/// Labels that a list is filtered by at most; an instance has no more of them.
const LABELS_MAX: usize = 64;

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

fn answer(status: StatusCode, instance: Instance) -> Response {
    (status, [(header::ETAG, etag(&instance))], Json(instance)).into_response()
}

/// The field of a request as `show` names it.
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
        ("wait" = Option<String>, Query, description = "Wait at most so long, such as 30s, until `for` is true."),
        ("for" = Option<String>, Query, description = "`running` (the default; `stopped` when run is false) or `ready`."),
        ("dry_run" = Option<bool>, Query, description = "True: everything is checked and nothing is done."),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key with the same body gives the same answer for 24 h."),
    ),
    request_body = CreateInstance,
    responses(
        (status = 201, description = "Accepted and durable.", body = Instance),
        (status = 200, description = "With `wait`: `for` is true.", body = Instance),
        (status = 202, description = "With `wait`: not yet.", body = Instance),
        (status = 204, description = "With `dry_run`: it would be accepted.", body = ()),
        (status = 409, description = "The name is taken, or the key was used for another body.", body = Problem),
        (status = 422, description = "A field can't be used.", body = Problem),
    )
)]
pub async fn create(
    State(control): State<Control>,
    asker: AuthenticatedUser,
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
        .map(|key| IdempotencyKey::new(&asker.principal, &key, "/v1/instances", &bytes));
    let created = control.create_instance(request, key, asker.cause).await?;
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

/// The answer to a wait for anything but the end; that it is gone is not what was waited for.
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
            "true or false",
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
            "for is not something to wait for",
            "running, ready, stopped or deleted",
        )),
    }
}

/// Lists instances by name.
#[utoipa::path(
    get, path = "/v1/instances", tag = "instances", operation_id = "list_instances",
    params(
        ("limit" = Option<u32>, Query, description = "Items a page, 1 to 1000; 100 by default."),
        ("cursor" = Option<String>, Query, description = "`next` of the page before."),
        ("state" = Option<String>, Query, description = "In this state; several are joined by commas."),
        ("node" = Option<String>, Query, description = "On this node."),
        ("template" = Option<String>, Query, description = "From this template."),
        ("label" = Option<String>, Query, description = "With this label, `key` or `key=value`; may be repeated."),
        ("name" = Option<String>, Query, description = "With this name."),
    ),
    responses((status = 200, description = "A page.", body = Page<Instance>), (status = 400, description = "A parameter can't be understood.", body = Problem))
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
    // Each is a term of the database's condition, which can't grow for ever.
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
                    problems::bad_query("state", "that is no state of an instance", all.join(", "))
                })
        })
        .collect()
}

/// Shows one instance, or waits for it.
#[utoipa::path(
    get, path = "/v1/instances/{name}", tag = "instances", operation_id = "show_instance",
    params(
        ("name" = String, Path, description = "Its name or id."),
        ("wait" = Option<String>, Query, description = "Wait at most so long, such as 30s, until `for` is true."),
        ("for" = Option<String>, Query, description = "`running` (the default), `ready`, `stopped` or `deleted`."),
    ),
    responses(
        (status = 200, description = "As it is; with `wait`: `for` is true.", body = Instance),
        (status = 202, description = "With `wait`: not yet.", body = Instance),
        (status = 404, description = "There is none.", body = Problem),
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
        ("name" = String, Path, description = "Its name or id."),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this ETag."),
        ("wait" = Option<String>, Query, description = "Wait at most so long until its node has done it."),
    ),
    request_body = UpdateInstance,
    responses(
        (status = 200, description = "Changed and durable; with `wait`: done.", body = Instance),
        (status = 202, description = "With `wait`: not done yet.", body = Instance),
        (status = 404, description = "There is none.", body = Problem),
        (status = 409, description = "It is being deleted.", body = Problem),
        (status = 412, description = "It changed in between.", body = Problem),
        (status = 422, description = "A field can't be used.", body = Problem),
    )
)]
pub async fn update(
    State(control): State<Control>,
    asker: AuthenticatedUser,
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
        .update_instance(&name, change, if_match, asker.cause)
        .await?;
    let Some(wait) = wait else {
        return Ok(answer(StatusCode::OK, instance));
    };
    let goal = Goal::Settled(instance.generation);
    waited(control.wait_for(instance.id, goal, wait).await?, &instance)
}

/// Deletes an instance, in whatever state it is.
#[utoipa::path(
    delete, path = "/v1/instances/{name}", tag = "instances", operation_id = "delete_instance",
    params(
        ("name" = String, Path, description = "Its name or id."),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this ETag."),
        ("wait" = Option<String>, Query, description = "Wait at most so long until nothing of it is left."),
    ),
    responses(
        (status = 200, description = "Nothing of it is left; this is how it was.", body = Instance),
        (status = 202, description = "Ordered and durable; its node destroys it.", body = Instance),
        (status = 404, description = "There is none.", body = Problem),
        (status = 409, description = "It is protected.", body = Problem),
        (status = 412, description = "It changed in between.", body = Problem),
    )
)]
pub async fn delete(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let wait = wait(&mut params)?;
    params.finish()?;
    let if_match = if_match(&headers)?;
    let deleted = control
        .delete_instance(&name, if_match, asker.cause)
        .await?;
    let (status, instance) = match wait {
        _ if deleted.gone => (StatusCode::OK, deleted.instance),
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

/// Tells the story of one instance.
#[utoipa::path(
    get, path = "/v1/instances/{name}/why", tag = "instances", operation_id = "why_instance",
    params(("name" = String, Path, description = "Its name or id.")),
    responses((status = 200, description = "What it waits for and what can be done.", body = Why), (status = 404, description = "There is none.", body = Problem))
)]
pub async fn why(
    State(control): State<Control>,
    asker: AuthenticatedUser,
    Path(name): Path<String>,
) -> Result<Json<Why>, Refusal> {
    let mut why = control.why(&name).await?;
    if asker.principal.role < Role::Operator
        && let Some(evidence) = &mut why.evidence
    {
        // Consoles are not for viewers, and neither are three lines of one.
        evidence.console.clear();
    }
    Ok(Json(why))
}

/// Reads an instance's user-data. For operators.
#[utoipa::path(
    get, path = "/v1/instances/{name}/user-data", tag = "instances", operation_id = "instance_user_data",
    params(("name" = String, Path, description = "Its name or id.")),
    responses((status = 200, description = "As it was given; empty when there is none.", body = String, content_type = "text/plain"), (status = 404, description = "There is no such instance.", body = Problem))
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
