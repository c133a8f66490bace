//! The security schemes of the OpenAPI document: a bearer token, or none on the unix socket.
//!
//! The roles come from [`crate::auth::access`], the table of the guard.

use utoipa::openapi::OpenApi;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use waifud_types::Role;

use crate::auth::access::{self, Access};

/// The name of the scheme in the document.
const BEARER: &str = "bearer";

/// Adds the security requirements and the role (`x-waifud-role`) to each operation.
pub fn describe(mut document: OpenApi) -> OpenApi {
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.description = Some(
        "A token of waifuctl token create, over HTTPS. On the unix socket no token is needed: every user who can open it has \
         the role admin."
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

/// A token or nothing. In OpenAPI an empty requirement means that no credential is needed, as on the unix socket.
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
    fn every_operation_has_security_requirements() {
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
