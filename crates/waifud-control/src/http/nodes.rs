//! `/v1/nodes`.

use axum::extract::Path;
use utoipa::IntoParams;
use waifud_api::{Node, Problem, RemoveNode, UpdateNode};

use super::answers::{Answer, NoContent, no_content};
use super::body::Json;
use super::paths::NodeName;
use super::peer::AuthenticatedUser;
use super::query::{FromParams, Params, Query};

/// Renames a node, cordons or uncordons it, and sets and removes labels. Labels that are not named stay.
#[utoipa::path(
    patch, path = "/v1/nodes/{name}", tag = "nodes", operation_id = "update_node",
    params(NodeName),
    responses(
        (status = 200, description = "The changed node.", body = Node),
        (status = 422, description = "A label is invalid.", body = Problem)
    )
)]
pub async fn update(
    user: AuthenticatedUser,
    node: Path<NodeName>,
    Json(change): Json<UpdateNode>,
) -> Answer<Node> {
    let control = user.control;
    Ok(Json(
        control.update_node(&node.name, change, user.cause).await?,
    ))
}

/// How a node is removed.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct RemoveParams {
    /// If true, also release the node's subnet. Can be used later, for a node that is already removed.
    #[param(value_type = Option<bool>)]
    purge: bool,
    /// If true, also remove a node that still has instances. They are lost with it: they can be recreated with new disks.
    /// The node must be unreachable, and `confirm_off` must be true.
    #[param(value_type = Option<bool>)]
    force: bool,
    /// The administrator's word that the machine is off.
    #[param(value_type = Option<bool>)]
    confirm_off: bool,
}

impl FromParams for RemoveParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        Ok(Self {
            purge: params.flag("purge")?,
            force: params.flag("force")?,
            confirm_off: params.flag("confirm_off")?,
        })
    }
}

/// Removes a node and its key. Guests on it keep running. Its subnet stays reserved until the node is purged.
#[utoipa::path(
    delete, path = "/v1/nodes/{name}", tag = "nodes", operation_id = "remove_node",
    params(NodeName, RemoveParams),
    responses(
        (status = 204, description = "The node is removed."),
        (status = 409, description = "The node has instances that are not deleted; or `force` is set, and `confirm_off` is not, or the node is reachable.", body = Problem)
    )
)]
pub async fn remove(
    user: AuthenticatedUser,
    Path(NodeName { name }): Path<NodeName>,
    Query(params): Query<RemoveParams>,
) -> NoContent {
    let how = RemoveNode {
        purge: params.purge,
        force: params.force,
        confirm_off: params.confirm_off,
    };
    no_content(user.control.remove_node(&name, how, user.cause).await)
}
