//! `/v1/instances`.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};
use waifud_api::{
    CreateInstance, DryRun, Instance, Page, Problem, RecreateInstance, UpdateInstance, Why,
};
use waifud_store::InstanceFilter;
use waifud_types::{InstanceState, Role, Secret};

use super::answers::{Answer, NoStore};
use super::body::{Json, JsonBytes, parse};
use super::headers::{etag, idempotency_key};
use super::paths::InstanceName;
use super::peer::AuthenticatedUser;
use super::query::{Both, FromParams, Params, Query};
use super::refusal::Refusal;
use super::wait::wait;
use crate::instances::IfMatch;
use crate::instances::idempotency::IdempotencyKey;
use crate::instances::problems as instance_problems;
use crate::instances::read::{Goal, Waited};
use crate::pagination::PageRequest;
use crate::problems;

/// The maximum number of label filters; an instance cannot have more labels.
const LABELS_MAX: usize = 64;

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

pub(super) fn answer(status: StatusCode, instance: Instance) -> Response {
    (
        status,
        [(header::ETAG, etag(instance.generation))],
        Json(instance),
    )
        .into_response()
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
            if ["placement", "nics", "publish", "firewall"]
                .iter()
                .any(|part| nested.starts_with(part)) =>
        {
            format!("spec.{nested}")
        }
        other => other.to_owned(),
    }
}

/// How long a request waits, and for what.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct GoalParams {
    /// Wait at most this long, for example 30s, until the instance reaches `for`.
    #[param(value_type = Option<String>)]
    wait: Option<Duration>,
    /// `running`, `ready`, `stopped` or `deleted`. By default `running`, or `stopped` if the instance's `run` is false.
    #[param(rename = "for", value_type = Option<String>)]
    goal: Option<Goal>,
}

impl FromParams for GoalParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        let wait = wait(params)?;
        let goal = goal(params)?;
        Ok(Self { wait, goal })
    }
}

/// How long a request waits until its change is applied.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct WaitParams {
    /// Wait at most this long, for example 30s, until the node has applied the change, or has destroyed the instance.
    #[param(value_type = Option<String>)]
    wait: Option<Duration>,
}

impl FromParams for WaitParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        let wait = wait(params)?;
        Ok(Self { wait })
    }
}

/// Whether an instance is created.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct DryRunParams {
    /// If true, the request is checked, a node is chosen for it, and nothing is created.
    #[param(value_type = Option<bool>)]
    dry_run: bool,
}

impl FromParams for DryRunParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        let dry_run = dry_run(params)?;
        Ok(Self { dry_run })
    }
}

/// The body of a create that is answered with 200.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only for the OpenAPI document")]
enum CreateOutcome {
    /// With `wait`.
    Instance(Box<Instance>),
    /// With `dry_run`.
    DryRun(DryRun),
}

/// Creates an instance.
#[utoipa::path(
    post, path = "/v1/instances", tag = "instances", operation_id = "create_instance",
    params(Both<GoalParams, DryRunParams>, ("Idempotency-Key" = Option<String>, Header, description = "Repeating the request with the same key returns the same answer for 24 hours.")),
    request_body = CreateInstance,
    responses(
        (status = 201, description = "The instance is created durably.", body = Instance),
        (status = 200, description = "With `wait`: the instance, which has reached `for`. With `dry_run`: the request is valid, and this is where the instance would be placed.", body = CreateOutcome),
        (status = 202, description = "With `wait`: the instance has not reached `for` yet.", body = Instance),
        (status = 409, description = "The name is taken, or the key was already used for another request.", body = Problem),
    )
)]
pub async fn create(
    user: AuthenticatedUser,
    Query(params): Query<Both<GoalParams, DryRunParams>>,
    headers: HeaderMap,
    JsonBytes(bytes): JsonBytes,
) -> Result<Response, Refusal> {
    let Both(GoalParams { wait, goal }, DryRunParams { dry_run }) = params;
    let control = user.control;
    let request: CreateInstance = parse(&bytes, field)?;
    if dry_run {
        return Ok(Json(control.check_create(request).await?).into_response());
    }
    let key = idempotency_key(&headers)?
        .map(|key| IdempotencyKey::new(&user.principal, &key, "/v1/instances", &bytes));
    let created = control.create_instance(request, key, user.cause).await?;
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
            "the parameter `dry_run` is neither true nor false",
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
            "unknown state in the parameter `for`",
            "use running, ready, stopped or deleted",
        )),
    }
}

/// Which instances are listed.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct FilterParams {
    /// Only instances in this state; separate several states with commas.
    #[param(rename = "state", value_type = Option<String>)]
    states: Vec<InstanceState>,
    /// Only instances on this node.
    node: Option<String>,
    /// Only instances of this template.
    template: Option<String>,
    /// Only instances with this label, `key` or `key=value`. Can be repeated.
    #[param(rename = "label", value_type = Option<String>)]
    labels: Vec<(String, Option<String>)>,
    /// Only the instance with this name.
    name: Option<String>,
}

impl FromParams for FilterParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        Ok(Self {
            states: states(params)?,
            node: params.one("node")?,
            template: params.one("template")?,
            labels: labels(params)?,
            name: params.one("name")?,
        })
    }
}

impl From<FilterParams> for InstanceFilter {
    fn from(params: FilterParams) -> Self {
        Self {
            states: params.states,
            node: params.node,
            template: params.template,
            name: params.name,
            labels: params.labels,
        }
    }
}

/// Lists instances by name.
#[utoipa::path(
    get, path = "/v1/instances", tag = "instances", operation_id = "list_instances",
    params(Both<PageRequest, FilterParams>), responses((status = 200, description = "A page of instances.", body = Page<Instance>))
)]
pub async fn list(
    user: AuthenticatedUser,
    Query(Both(page, filter)): Query<Both<PageRequest, FilterParams>>,
) -> Answer<Page<Instance>> {
    Ok(Json(user.control.instances(filter.into(), page).await?))
}

fn labels(params: &mut Params) -> Result<Vec<(String, Option<String>)>, Problem> {
    let given = params.all("label");
    // Each is a term of the database query, whose length is limited.
    if given.len() > LABELS_MAX {
        return Err(problems::too_many("label", LABELS_MAX));
    }
    Ok(given
        .into_iter()
        .map(|label| match label.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (label, None),
        })
        .collect())
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
                        "unknown state in the parameter `state`",
                        all.join(", "),
                    )
                })
        })
        .collect()
}

/// Shows one instance; with `wait`, after it has reached a state.
#[utoipa::path(
    get, path = "/v1/instances/{name}", tag = "instances", operation_id = "show_instance",
    params(InstanceName, GoalParams),
    responses(
        (status = 200, description = "The instance; with `wait`: it has reached `for`.", body = Instance),
        (status = 202, description = "With `wait`: the instance has not reached `for` yet.", body = Instance),
    )
)]
pub async fn show(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
    Query(GoalParams { wait, goal }): Query<GoalParams>,
) -> Result<Response, Refusal> {
    let instance = user.control.instance(&name).await?;
    let Some(wait) = wait else {
        return Ok(answer(StatusCode::OK, instance));
    };
    let goal = goal.unwrap_or(default_goal(&instance));
    match user.control.wait_for(instance.id, goal, wait).await? {
        Waited::Gone if goal == Goal::Gone => Ok(answer(StatusCode::OK, instance)),
        Waited::Gone => Err(Refusal(problems::not_found("instance", &name))),
        outcome => waited(outcome, &instance),
    }
}

/// Changes an instance.
#[utoipa::path(
    patch, path = "/v1/instances/{name}", tag = "instances", operation_id = "update_instance",
    params(InstanceName, WaitParams, ("If-Match" = Option<String>, Header, description = "Only if the instance still has this ETag.")),
    request_body = UpdateInstance,
    responses(
        (status = 200, description = "The change is durable; with `wait`: it is applied.", body = Instance),
        (status = 202, description = "With `wait`: the change is not applied yet.", body = Instance),
        (status = 409, description = "The instance is being deleted.", body = Problem),
        (status = 412, description = "The instance has changed and has another ETag.", body = Problem),
    )
)]
pub async fn update(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
    Query(WaitParams { wait }): Query<WaitParams>,
    if_match: IfMatch,
    JsonBytes(bytes): JsonBytes,
) -> Result<Response, Refusal> {
    let control = user.control;
    let change: UpdateInstance = parse(&bytes, field)?;
    let instance = control
        .update_instance(&name, change, if_match, user.cause)
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
    params(InstanceName, WaitParams, ("If-Match" = Option<String>, Header, description = "Only if the instance still has this ETag.")),
    responses(
        (status = 200, description = "The instance is destroyed; this is its last state.", body = Instance),
        (status = 202, description = "The deletion is durable; the node destroys the instance.", body = Instance),
        (status = 409, description = "The instance is protected against deletion.", body = Problem),
        (status = 412, description = "The instance has changed and has another ETag.", body = Problem),
    )
)]
pub async fn delete(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
    Query(WaitParams { wait }): Query<WaitParams>,
    if_match: IfMatch,
) -> Result<Response, Refusal> {
    let control = user.control;
    let deleted = control.delete_instance(&name, if_match, user.cause).await?;
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

/// Places an instance again whose node was removed with its disks. It keeps its id, name, MAC addresses, user-data and
/// settings. Its disks are new, and it gets another address on the default network.
#[utoipa::path(
    post, path = "/v1/instances/{name}/recreate", tag = "instances", operation_id = "recreate_instance",
    params(InstanceName, ("If-Match" = Option<String>, Header, description = "Only if the instance still has this ETag.")),
    request_body = RecreateInstance,
    responses(
        (status = 200, description = "The instance is placed, or waits for a node.", body = Instance),
        (status = 409, description = "The instance has its disks, or is being deleted.", body = Problem),
        (status = 412, description = "The instance has changed and has another ETag.", body = Problem),
        (status = 422, description = "The node does not exist.", body = Problem),
    )
)]
pub async fn recreate(
    user: AuthenticatedUser,
    Path(InstanceName { name }): Path<InstanceName>,
    if_match: IfMatch,
    Json(request): Json<RecreateInstance>,
) -> Result<Response, Refusal> {
    let control = user.control;
    let instance = control
        .recreate_instance(&name, request, if_match, user.cause)
        .await?;
    Ok(answer(StatusCode::OK, instance))
}

/// Explains the state of an instance: its cause, what the instance waits for, and what to do.
#[utoipa::path(
    get, path = "/v1/instances/{name}/why", tag = "instances", operation_id = "why_instance",
    params(InstanceName), responses((status = 200, description = "The explanation.", body = Why))
)]
pub async fn why(user: AuthenticatedUser, instance: Path<InstanceName>) -> Answer<Why> {
    let mut why = user.control.why(&instance.name).await?;
    if user.principal.role < Role::Operator
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
    params(InstanceName), responses((status = 200, description = "The user-data as it was sent; empty without any.", body = String, content_type = "text/plain"))
)]
pub async fn user_data(
    user: AuthenticatedUser,
    instance: Path<InstanceName>,
) -> Result<NoStore<Response>, Refusal> {
    let text = user.control.user_data(&instance.name).await?;
    let text = text.map(Secret::into_inner).unwrap_or_default();
    let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok(NoStore((plain, text).into_response()))
}
