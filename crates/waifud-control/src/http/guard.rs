//! Authentication and authorization of users, before every handler of the user routes, by the table in `auth/access.rs`.
//!
//! The connection ([`Peer`]) or a bearer token identifies the caller. A route outside the table is refused. A handler
//! without this guard is refused, too: `AuthenticatedUser` then finds no principal.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use hyper::body::{Frame, SizeHint};
use waifud_api::Problem;
use waifud_types::Role;

use super::envelope::no_method;
use super::refusal::Refusal;
use crate::Control;
use crate::auth::access::{self, Access};
use crate::auth::holdings::{Held, Kind};
use crate::auth::principal::{ConnectionProof, Peer, Principal};
use crate::auth::problems as auth_problems;
use crate::auth::tokens::Refused;

/// Adds the guard to every route that the router has so far.
pub fn around(router: Router<Control>, control: Control) -> Router<Control> {
    router.layer(from_fn_with_state(control, guard))
}

/// Closes routes for nodes that are not in the table as such. `AgentPeer` identifies the node.
pub fn listed(router: Router<Control>) -> Router<Control> {
    router.layer(from_fn(require_listed))
}

async fn require_listed(request: Request, next: Next) -> Response {
    let path = matched(&request);
    match access::of(&method_of(&request), &path) {
        Some(Access::Node | Access::JoinToken) => next.run(request).await,
        _ => not_in_the_table(&path).await,
    }
}

async fn guard(State(control): State<Control>, mut request: Request, next: Next) -> Response {
    let path = matched(&request);
    let method = method_of(&request);
    let role = match access::of(&method, &path) {
        Some(Access::Anyone) => return next.run(request).await,
        Some(Access::AtLeast(role)) => role,
        Some(Access::Node | Access::JoinToken) => {
            return Refusal(auth_problems::user_on_agent_route()).into_response();
        }
        None => return not_in_the_table(&path).await,
    };
    let principal = match authorize(&control, &mut request, role).await {
        Ok(principal) => principal,
        Err(response) => return response,
    };
    request.extensions_mut().insert(principal.clone());
    if principal.token.is_none() {
        return next.run(request).await;
    }
    run_with_limits(control, principal, request, next)
        .await
        .unwrap_or_else(|problem| Refusal(problem).into_response())
}

/// Runs a request of a token within the token's limits. Waits and streams end when the token is revoked.
async fn run_with_limits(
    control: Control,
    principal: Principal,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let tokens = control.token_state();
    let held = tokens.hold(&principal, Kind::Request)?;
    let response = if waits(&request) {
        let _held = tokens.hold(&principal, Kind::Wait)?;
        tokio::select! {
            response = next.run(request) => response,
            () = control.until_revoked(&principal) => return Err(auth_problems::token_ended()),
        }
    } else {
        next.run(request).await
    };
    if !is_stream(&response) {
        return Ok(response.map(|body| Body::new(HeldBody { body, _held: held })));
    }
    let follower = tokens.hold(&principal, Kind::Follower)?;
    Ok(until_revoked(
        control.clone(),
        principal,
        response,
        (held, follower),
    ))
}

/// Whether the request waits for a state.
fn waits(request: &Request) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .any(|pair| pair == "wait" || pair.starts_with("wait="))
}

/// A body that counts as an open request of the token until its end.
struct HeldBody {
    body: Body,
    _held: Option<Held>,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The path template of the router.
fn matched(request: &Request) -> String {
    let path = request.extensions().get::<MatchedPath>();
    path.map_or_else(String::new, |path| path.as_str().to_owned())
}

/// HEAD is treated as GET, as in the router.
fn method_of(request: &Request) -> String {
    match request.method() {
        &Method::HEAD => "GET".to_owned(),
        other => other.as_str().to_owned(),
    }
}

/// The answer for a route outside the table: 405 if the path has other methods, otherwise 403.
async fn not_in_the_table(path: &str) -> Response {
    let methods = access::methods(path);
    if methods.is_empty() {
        tracing::error!(path, "a route is missing from the access table");
        return Refusal(auth_problems::forbidden("this route has no access rule")).into_response();
    }
    let mut response = no_method().await.into_response();
    if let Ok(allow) = HeaderValue::from_str(&methods.join(",")) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

async fn authorize(
    control: &Control,
    request: &mut Request,
    needed: Role,
) -> Result<Principal, Response> {
    let peer = request
        .extensions()
        .get::<ConnectInfo<Peer>>()
        .map_or(Peer::Unknown, |ConnectInfo(peer)| *peer);
    let credential = Credential::of(request.headers());
    let authenticated = authenticate(control, peer, &credential).await;
    if let Some(proof) = request.extensions().get::<ConnectionProof>() {
        let token = authenticated
            .as_ref()
            .ok()
            .and_then(|principal| principal.token);
        proof.set(token.map(u64::from_be_bytes));
    }
    let principal = authenticated?;
    // The secret is not needed any more and cannot leak from here on.
    request.headers_mut().remove(header::AUTHORIZATION);
    if principal.role < needed {
        let problem = auth_problems::role_too_low(&principal.name, principal.role, needed);
        return Err(Refusal(problem).into_response());
    }
    Ok(principal)
}

/// The credential of a request.
enum Credential {
    None,
    Bearer(waifud_types::Secret<String>),
    /// Not a bearer token.
    Other,
}

impl Credential {
    fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return if headers.contains_key(header::AUTHORIZATION) {
                Self::Other
            } else {
                Self::None
            };
        };
        let token = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        token.map_or(Self::Other, |token| Self::Bearer(token.to_owned().into()))
    }
}

async fn authenticate(
    control: &Control,
    peer: Peer,
    credential: &Credential,
) -> Result<Principal, Response> {
    let refuse = |problem| Err(Refusal(problem).into_response());
    let from = match (peer, credential) {
        (Peer::Unknown, _) => {
            return refuse(auth_problems::forbidden(
                "the caller's user id is unknown; connect to the unix socket directly",
            ));
        }
        (Peer::Certificate { .. }, _) => return refuse(auth_problems::certificate_on_user_route()),
        (Peer::Unix { uid }, Credential::None) => return Ok(Principal::local(uid)),
        (Peer::Tls { .. }, Credential::None) => return refuse(auth_problems::no_credential()),
        // A token decides on the unix socket, too, so a proxy in front of it does not make its callers administrators.
        (Peer::Unix { .. }, _) => None,
        (Peer::Tls { from }, _) => Some(from.ip()),
    };
    let token = match credential {
        Credential::Bearer(token) => token.expose().as_str(),
        Credential::None | Credential::Other => "",
    };
    match control.authenticate(token, from, peer.from()).await {
        Ok(Ok(principal)) => Ok(principal),
        Ok(Err(Refused::Invalid)) => refuse(auth_problems::bad_credential()),
        Ok(Err(Refused::TooMany(left))) => {
            let mut response = Refusal(auth_problems::too_many_attempts()).into_response();
            let seconds = HeaderValue::from(left.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
            Err(response)
        }
        Err(error) => Err(Refusal::from(error).into_response()),
    }
}

fn is_stream(response: &Response) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// Ends a stream when its token is revoked.
fn until_revoked(
    control: Control,
    principal: Principal,
    response: Response,
    held: (Option<Held>, Option<Held>),
) -> Response {
    response.map(|body| {
        let end = Box::pin(async move {
            let _held = held;
            control.until_revoked(&principal).await;
        });
        Body::from_stream(body.into_data_stream().take_until(end))
    })
}
