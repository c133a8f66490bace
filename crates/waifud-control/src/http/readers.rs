//! The handlers that only read and are alike for several kinds of objects: a page of them, and one of them.

use axum::extract::Path;
use waifud_api::{Network, Node, Page, Token};
use waifud_types::template::Template;

use super::answers::Answer;
use super::body::Json;
use super::paths::{NetworkName, NodeName, TemplateName};
use super::peer::AuthenticatedUser;
use super::query::Query;
use crate::pagination::PageRequest;

/// Handlers that return a page: each with its path, its tag, the verb of `Control`, and the type of the objects.
macro_rules! list_handlers {
    ($($(#[$about:meta])* $handler:ident($path:literal, $tag:literal): $verb:ident -> $object:ident;)+) => {$(
        $(#[$about])*
        #[utoipa::path(
            get, path = $path, tag = $tag, params(PageRequest),
            responses((status = 200, description = concat!("A page of ", $tag, "."), body = Page<$object>))
        )]
        pub async fn $handler(
            user: AuthenticatedUser,
            page: Query<PageRequest>,
        ) -> Answer<Page<$object>> {
            Ok(Json(user.control.$verb(page.0).await?))
        }
    )+};
}

/// Handlers that return the object that the path names.
macro_rules! show_handlers {
    ($(
        $(#[$about:meta])*
        $handler:ident($path:literal, $tag:literal, $text:literal): $verb:ident($name:ident) -> $object:ident;
    )+) => {$(
        $(#[$about])*
        #[utoipa::path(
            get, path = $path, tag = $tag, params($name),
            responses((status = 200, description = $text, body = $object))
        )]
        pub async fn $handler(user: AuthenticatedUser, path: Path<$name>) -> Answer<$object> {
            Ok(Json(user.control.$verb(&path.name).await?))
        }
    )+};
}

list_handlers! {
    /// Lists templates by name.
    list_templates("/v1/templates", "templates"): templates -> Template;
    /// Lists networks by name, including `default`.
    list_networks("/v1/networks", "networks"): networks -> Network;
    /// Lists nodes by name.
    list_nodes("/v1/nodes", "nodes"): nodes -> Node;
    /// Lists tokens by name, without secrets. For administrators.
    list_tokens("/v1/tokens", "tokens"): tokens -> Token;
}

show_handlers! {
    /// Shows one template.
    show_template("/v1/templates/{name}", "templates", "The template."): template(TemplateName) -> Template;
    /// Shows one network.
    show_network("/v1/networks/{name}", "networks", "The network."): network(NetworkName) -> Network;
    /// Shows one node.
    show_node("/v1/nodes/{name}", "nodes", "The node."): node(NodeName) -> Node;
}
