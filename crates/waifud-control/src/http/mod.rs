//! The HTTP interface: routes, and the parts that all answers share.
//!
//! A handler reads a request, calls one verb of [`Control`] and builds the answer. Errors are returned as [`Refusal`]; the
//! layer in `envelope.rs` turns every error answer, including axum's own, into a problem body with the request id.

mod agent;
mod answers;
mod body;
mod capacity;
mod contract;
mod descriptions;
mod dns;
mod downloads;
mod drain;
mod envelope;
mod events;
mod fabric;
mod fabric_clients;
mod firewall;
mod guard;
mod guest_commands;
mod headers;
mod images;
mod instances;
mod join_tokens;
mod moving;
mod networks;
mod nics;
mod nodes;
mod paths;
mod peer;
mod query;
mod readers;
mod refusal;
mod security;
mod server;
mod service;
mod streams;
mod templates;
mod tokens;
mod unmanaged;
mod wait;
mod web_socket;

use std::sync::LazyLock;

use axum::Router;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use refusal::Refusal;

use crate::Control;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "waifud",
        license(name = "PolyForm Noncommercial License 1.0.0", identifier = "PolyForm-Noncommercial-1.0.0"),
        description = "Virtual machines on a few Linux machines. Errors are RFC 9457 problems, lists are paginated, and \
                       `?wait=` delays the answer until a change is applied."
    ),
    components(schemas(waifud_api::Problem, waifud_api::Download, crate::ProgressFrame)),
    tags(
        (name = "instances"), (name = "templates"), (name = "images"), (name = "nodes"), (name = "networks"), (name = "events"), (name = "tokens"),
        (name = "streams"),
        (name = "service")
    )
)]
struct Document;

fn user_routes() -> OpenApiRouter<Control> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(instances::create, instances::list))
        .routes(routes!(
            instances::show,
            instances::update,
            instances::delete
        ))
        .routes(routes!(instances::recreate))
        .routes(routes!(moving::begin, moving::cancel))
        .routes(routes!(nics::add))
        .routes(routes!(nics::remove))
        .routes(routes!(instances::why))
        .routes(routes!(firewall::show))
        .routes(routes!(instances::user_data))
        .routes(routes!(descriptions::description))
        .routes(routes!(descriptions::list))
        .routes(routes!(streams::console))
        .routes(routes!(streams::forward))
        .routes(routes!(streams::log))
        .routes(routes!(streams::screen))
        .routes(routes!(streams::ssh))
        .routes(routes!(guest_commands::exec))
        .routes(routes!(guest_commands::set_password))
        .routes(routes!(templates::create, readers::list_templates))
        .routes(routes!(readers::show_template, templates::delete))
        .routes(routes!(templates::refresh))
        .routes(routes!(downloads::create, downloads::list))
        .routes(routes!(downloads::show, downloads::delete))
        .routes(routes!(downloads::catalog))
        .routes(routes!(images::list))
        .routes(routes!(images::upload, images::show, images::delete))
        .routes(routes!(networks::create, readers::list_networks))
        .routes(routes!(readers::show_network, networks::delete))
        .routes(routes!(fabric::show, fabric::set))
        .routes(routes!(fabric_clients::create, fabric_clients::list))
        .routes(routes!(fabric_clients::show, fabric_clients::delete))
        .routes(routes!(dns::show))
        .routes(routes!(capacity::show))
        .routes(routes!(readers::list_nodes))
        .routes(routes!(readers::show_node, nodes::update, nodes::remove))
        .routes(routes!(drain::show, drain::begin, drain::cancel))
        .routes(routes!(unmanaged::adopt))
        .routes(routes!(unmanaged::delete))
        .routes(routes!(unmanaged::confirm))
        .routes(routes!(join_tokens::create, join_tokens::list))
        .routes(routes!(join_tokens::revoke))
        .routes(routes!(events::events))
        .routes(routes!(tokens::create, readers::list_tokens))
        .routes(routes!(tokens::revoke))
        .routes(routes!(tokens::whoami))
        .routes(routes!(service::openapi))
        .routes(routes!(service::version))
        .routes(routes!(server::show))
        .routes(routes!(service::healthz))
}

/// The OpenAPI 3.1 document of the routes for users, collected from the handlers.
///
/// # Errors
/// The document cannot be serialized as JSON.
pub fn openapi() -> serde_json::Result<serde_json::Value> {
    let collected = security::describe(user_routes().into_openapi());
    serde_json::to_value(collected).map(contract::complete)
}

/// The routes for users. Requests need a [`Peer`](crate::Peer) as connect info.
pub fn user_router(control: Control) -> Router {
    envelope::wrap(guarded(&control), &control).with_state(control)
}

/// The routes for users, each behind the guard.
fn guarded(control: &Control) -> Router<Control> {
    // Collecting the descriptions takes most of the time, and they are the same for every service.
    static ROUTES: LazyLock<Router<Control>> = LazyLock::new(|| user_routes().split_for_parts().0);
    guard::around(ROUTES.clone(), control.clone())
}

/// The routes for users and for nodes on one TLS port. The [`Peer`](crate::Peer) decides which of them a caller may use.
pub fn tls_router(control: Control) -> Router {
    envelope::wrap(
        guarded(&control).merge(guard::listed(agent::routes())),
        &control,
    )
    .with_state(control)
}
