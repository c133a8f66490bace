//! The table of all routes with the role that each requires.
//!
//! A route that is missing from the table is closed, and a test fails.

use waifud_types::Role;

/// Who may use a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Every caller that can connect.
    Anyone,
    /// Callers with at least this role.
    AtLeast(Role),
    /// Nodes with a client certificate.
    Node,
    /// Callers with a join token.
    JoinToken,
}

use Access::{Anyone, AtLeast, JoinToken, Node};
use Role::{Admin, Operator, Viewer};

/// Method, path template of the router, access.
pub const ROUTES: &[(&str, &str, Access)] = &[
    ("GET", "/healthz", Anyone),
    ("GET", "/v1/version", Anyone),
    ("GET", "/v1/openapi.json", Anyone),
    ("GET", "/v1/events", AtLeast(Viewer)),
    ("GET", "/v1/instances", AtLeast(Viewer)),
    ("POST", "/v1/instances", AtLeast(Operator)),
    ("GET", "/v1/instances/{name}", AtLeast(Viewer)),
    ("PATCH", "/v1/instances/{name}", AtLeast(Operator)),
    ("DELETE", "/v1/instances/{name}", AtLeast(Operator)),
    ("POST", "/v1/instances/{name}/recreate", AtLeast(Operator)),
    ("POST", "/v1/instances/{name}/move", AtLeast(Operator)),
    ("DELETE", "/v1/instances/{name}/move", AtLeast(Operator)),
    ("GET", "/v1/instances/{name}/firewall", AtLeast(Viewer)),
    ("POST", "/v1/instances/{name}/nics", AtLeast(Operator)),
    (
        "DELETE",
        "/v1/instances/{name}/nics/{nic}",
        AtLeast(Operator),
    ),
    ("GET", "/v1/instances/{name}/why", AtLeast(Viewer)),
    ("GET", "/v1/instances/{name}/user-data", AtLeast(Operator)),
    ("GET", "/v1/instances/{name}/description", AtLeast(Operator)),
    ("GET", "/v1/instances/{name}/console", AtLeast(Operator)),
    ("GET", "/v1/instances/{name}/forward", AtLeast(Operator)),
    ("GET", "/v1/instances/{name}/log", AtLeast(Operator)),
    ("GET", "/v1/instances/{name}/screen", AtLeast(Operator)),
    ("GET", "/v1/instances/{name}/ssh", AtLeast(Operator)),
    ("POST", "/v1/instances/{name}/exec", AtLeast(Operator)),
    ("PUT", "/v1/instances/{name}/password", AtLeast(Operator)),
    ("GET", "/v1/descriptions", AtLeast(Operator)),
    ("GET", "/v1/templates", AtLeast(Viewer)),
    ("POST", "/v1/templates", AtLeast(Operator)),
    ("GET", "/v1/templates/{name}", AtLeast(Viewer)),
    ("DELETE", "/v1/templates/{name}", AtLeast(Operator)),
    ("POST", "/v1/templates/{name}/refresh", AtLeast(Operator)),
    ("GET", "/v1/downloads", AtLeast(Viewer)),
    ("POST", "/v1/downloads", AtLeast(Operator)),
    ("GET", "/v1/downloads/{name}", AtLeast(Viewer)),
    ("DELETE", "/v1/downloads/{name}", AtLeast(Operator)),
    ("GET", "/v1/catalog", AtLeast(Viewer)),
    ("GET", "/v1/images", AtLeast(Viewer)),
    ("GET", "/v1/images/{digest}", AtLeast(Viewer)),
    ("PUT", "/v1/images/{digest}", AtLeast(Operator)),
    ("DELETE", "/v1/images/{digest}", AtLeast(Operator)),
    ("GET", "/v1/networks", AtLeast(Viewer)),
    ("POST", "/v1/networks", AtLeast(Admin)),
    ("GET", "/v1/networks/{name}", AtLeast(Viewer)),
    ("DELETE", "/v1/networks/{name}", AtLeast(Admin)),
    ("GET", "/v1/fabric", AtLeast(Viewer)),
    ("PUT", "/v1/fabric", AtLeast(Admin)),
    ("GET", "/v1/fabric/clients", AtLeast(Admin)),
    ("POST", "/v1/fabric/clients", AtLeast(Admin)),
    ("GET", "/v1/fabric/clients/{name}", AtLeast(Admin)),
    ("DELETE", "/v1/fabric/clients/{name}", AtLeast(Admin)),
    ("GET", "/v1/dns", AtLeast(Viewer)),
    ("GET", "/v1/capacity", AtLeast(Viewer)),
    ("GET", "/v1/nodes", AtLeast(Viewer)),
    ("GET", "/v1/nodes/{name}", AtLeast(Viewer)),
    ("PATCH", "/v1/nodes/{name}", AtLeast(Admin)),
    ("DELETE", "/v1/nodes/{name}", AtLeast(Admin)),
    ("GET", "/v1/join-tokens", AtLeast(Admin)),
    ("POST", "/v1/join-tokens", AtLeast(Admin)),
    ("DELETE", "/v1/join-tokens/{id}", AtLeast(Admin)),
    ("POST", "/v1/agent/join", JoinToken),
    ("GET", "/v1/agent/install", JoinToken),
    ("GET", "/v1/agent/packages/{kind}", JoinToken),
    ("GET", "/v1/agent/node", Node),
    ("POST", "/v1/agent/hello", Node),
    ("GET", "/v1/agent/watch", Node),
    ("POST", "/v1/agent/report", Node),
    ("GET", "/v1/agent/images/{digest}", Node),
    ("POST", "/v1/agent/images/{digest}/tickets", Node),
    ("POST", "/v1/agent/images/{digest}/copied", Node),
    ("GET", "/v1/agent/bundles/{digest}", Node),
    ("GET", "/v1/agent/moves/{instance}/disks/{index}", Node),
    (
        "POST",
        "/v1/agent/moves/{instance}/disks/{index}/ticket",
        Node,
    ),
    ("GET", "/v1/agent/streams/{id}", Node),
    ("POST", "/v1/agent/streams/{id}/refuse", Node),
    ("GET", "/v1/tokens", AtLeast(Admin)),
    ("POST", "/v1/tokens", AtLeast(Admin)),
    ("DELETE", "/v1/tokens/{name}", AtLeast(Admin)),
    ("GET", "/v1/whoami", AtLeast(Viewer)),
    ("GET", "/v1/server", AtLeast(Viewer)),
    ("POST", "/v1/nodes/{name}/confirm", AtLeast(Admin)),
    ("GET", "/v1/nodes/{name}/drain", AtLeast(Viewer)),
    ("POST", "/v1/nodes/{name}/drain", AtLeast(Admin)),
    ("DELETE", "/v1/nodes/{name}/drain", AtLeast(Admin)),
    (
        "DELETE",
        "/v1/nodes/{name}/unmanaged/{instance}",
        AtLeast(Admin),
    ),
    (
        "POST",
        "/v1/nodes/{name}/unmanaged/{instance}/adopt",
        AtLeast(Admin),
    ),
];

/// The access of a route; `None` if the table does not contain it.
pub fn of(method: &str, path: &str) -> Option<Access> {
    ROUTES
        .iter()
        .find(|(m, p, _)| *m == method && *p == path)
        .map(|(_, _, access)| *access)
}

/// The methods of a path, for the Allow header.
pub fn methods(path: &str) -> Vec<&'static str> {
    let mut methods: Vec<_> = ROUTES
        .iter()
        .filter(|(_, p, _)| *p == path)
        .map(|(method, ..)| *method)
        .collect();
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation of the OpenAPI document.
    fn operations() -> Vec<(String, String)> {
        let document = crate::http::openapi().unwrap();
        let mut found = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                found.push((method.to_uppercase(), path.clone()));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn the_table_contains_exactly_the_routes() {
        let mut table: Vec<_> = ROUTES
            .iter()
            .filter(|(_, path, _)| !path.starts_with("/v1/agent/"))
            .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
            .collect();
        table.sort();
        assert_eq!(table, operations());
    }

    #[test]
    fn a_route_outside_the_table_has_no_access() {
        assert_eq!(of("GET", "/v1/nowhere"), None);
        assert_eq!(of("GET", "/healthz"), Some(Anyone));
    }
}
