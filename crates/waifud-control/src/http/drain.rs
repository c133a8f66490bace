//! `/v1/nodes/{name}/drain`: moving all instances of a node to others.

use axum::extract::Path;
use utoipa::IntoParams;
use waifud_api::{Drain, DrainNode, Problem};

use super::answers::Answer;
use super::body::Json;
use super::paths::NodeName;
use super::peer::AuthenticatedUser;
use super::query::{FromParams, Params, Query};

/// How a drain would be done.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct DrainParams {
    /// If true, plan as if the instances may get other addresses.
    #[param(value_type = Option<bool>)]
    new_address: bool,
}

impl FromParams for DrainParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        Ok(Self {
            new_address: params.flag("new_address")?,
        })
    }
}

/// Shows what is left of the drain of a node; for a node that is not drained, where its instances could move now, and why
/// the others cannot. Changes nothing.
#[utoipa::path(
    get, path = "/v1/nodes/{name}/drain", tag = "nodes", operation_id = "drain",
    params(NodeName, DrainParams),
    responses((status = 200, description = "The drain.", body = Drain))
)]
pub async fn show(
    user: AuthenticatedUser,
    Path(NodeName { name }): Path<NodeName>,
    Query(params): Query<DrainParams>,
) -> Answer<Drain> {
    let new_address = params.new_address.then_some(true);
    Ok(Json(user.control.drain(&name, new_address).await?))
}

/// Drains a node: it accepts no new instances, and those on it move to other nodes, two at a time. Instances that fit nowhere
/// stay, and are moved when they fit. The drain ends when the node is empty; the node stays cordoned.
#[utoipa::path(
    post, path = "/v1/nodes/{name}/drain", tag = "nodes", operation_id = "drain_node",
    params(NodeName), request_body = DrainNode,
    responses(
        (status = 200, description = "The node is being drained, or is empty already.", body = Drain),
        (status = 409, description = "It is the only node, or instances would get other addresses.", body = Problem)
    )
)]
pub async fn begin(
    user: AuthenticatedUser,
    Path(NodeName { name }): Path<NodeName>,
    Json(request): Json<DrainNode>,
) -> Answer<Drain> {
    let drain = user.control.drain_node(&name, request, user.cause).await?;
    Ok(Json(drain))
}

/// Ends the drain of a node, which stays cordoned. Moves that have begun go on; each can be canceled.
#[utoipa::path(
    delete, path = "/v1/nodes/{name}/drain", tag = "nodes", operation_id = "cancel_drain",
    params(NodeName),
    responses(
        (status = 200, description = "No further instance is moved away.", body = Drain),
        (status = 409, description = "The node is not being drained.", body = Problem)
    )
)]
pub async fn cancel(
    user: AuthenticatedUser,
    Path(NodeName { name }): Path<NodeName>,
) -> Answer<Drain> {
    Ok(Json(user.control.cancel_drain(&name, user.cause).await?))
}
