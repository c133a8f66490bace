//! How the OpenAPI document says who may ask: a bearer token, or nothing at the unix socket.
//!
//! Roles come from the table of [`crate::auth::access`], the one that the guard obeys.

use utoipa::openapi::OpenApi;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use waifud_types::Role;

use crate::auth::access::{self, Access};

/// What the scheme is called in the document.
const BEARER: &str = "bearer";

/// Says of each operation what it takes, and which role (`x-waifud-role`).
pub fn describe(mut document: OpenApi) -> OpenApi {
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.description = Some(
        "A token of waifuctl token create, over HTTPS. At the unix socket the file's permissions decide, and no token is \
         needed: who may open it is an admin there."
            .to_owned(),
    );
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    document.security = Some(tokens_or_socket());
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            match access::of(method, path) {
                Some(Access::Anyone) => operation.security = Some(Vec::new()),
                Some(Access::AtLeast(role)) => require(operation, role),
                Some(Access::Node | Access::JoinToken) | None => {}
            }
        }
    }
    document
}

/// Either of both; an empty requirement is OpenAPI's way to say that nothing is needed, as at the unix socket.
fn tokens_or_socket() -> Vec<SecurityRequirement> {
    let token = SecurityRequirement::new(BEARER, Vec::<String>::new());
    vec![token, SecurityRequirement::default()]
}

fn require(operation: &mut Operation, role: Role) {
    operation.security = Some(tokens_or_socket());
    let extension = ExtensionsBuilder::new().add("x-waifud-role", role.to_string());
    operation
        .extensions
        .get_or_insert_default()
        .merge(extension.build());
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("GET", &mut item.get),
        ("POST", &mut item.post),
        ("PUT", &mut item.put),
        ("PATCH", &mut item.patch),
        ("DELETE", &mut item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_operation_says_who_may_ask() {
        let document = crate::http::openapi().unwrap();
        assert_eq!(
            document["components"]["securitySchemes"]["bearer"]["scheme"],
            "bearer"
        );
        let mut open = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let security = operation["security"].as_array().unwrap();
                if security.is_empty() {
                    open.push(path.as_str());
                    continue;
                }
                assert!(
                    security.contains(&serde_json::json!({"bearer": []})),
                    "{method} {path}"
                );
                let role = operation["x-waifud-role"].as_str();
                assert!(
                    matches!(role, Some("viewer" | "operator" | "admin")),
                    "{method} {path}"
                );
            }
        }
        assert_eq!(open, ["/healthz", "/v1/openapi.json", "/v1/version"]);
        assert_eq!(
            document["paths"]["/v1/networks"]["post"]["x-waifud-role"],
            "admin"
        );
    }
}
