//! Problems with credentials, roles and the limits of one token.

use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction, HintKind, HintWhen};
use waifud_types::{Name, Role};

fn as_administrator(hint: Hint) -> Hint {
    hint.when(HintWhen::Administrator)
}

fn create_token(role: Option<Role>) -> Hint {
    let action = HintAction::CreateToken { role };
    as_administrator(Hint::on_kind(&action, HintKind::Token))
}

/// The caller may not use this route. `hint` says who may.
pub fn forbidden(hint: &str) -> Problem {
    Problem::new(403, "forbidden", "permission denied").hint(hint)
}

/// The request has no credential.
pub fn no_credential() -> Problem {
    Problem::new(401, "missing-credential", "the request has no credential")
        .hint("send a token as Authorization: Bearer …")
        .hint(create_token(None))
}

/// The token is not valid. The answer is the same for every reason, so that guessing reveals nothing.
pub fn bad_credential() -> Problem {
    Problem::new(
        401,
        "invalid-credential",
        "the token is unknown, revoked or expired",
    )
    .hint(create_token(None))
    .hint(as_administrator(Hint::on_kind(
        &HintAction::List,
        HintKind::Token,
    )))
}

/// Too many invalid tokens came from the caller's address.
pub fn too_many_attempts() -> Problem {
    Problem::new(
        429,
        "too-many-attempts",
        "too many invalid tokens were sent from this address",
    )
    .hint("wait for the number of seconds in Retry-After, then send a valid token")
}

/// The caller's role is not sufficient.
pub fn role_too_low(who: &str, own: Role, needed: Role) -> Problem {
    Problem::new(
        403,
        "insufficient-role",
        format!("this requires the role {needed}; {who} has the role {own}"),
    )
    .hint(format!(
        "ask an administrator, or use a token with the role {needed}"
    ))
    .hint(create_token(Some(needed)))
}

/// A node's certificate was used on a user route.
pub fn certificate_on_user_route() -> Problem {
    forbidden(
        "client certificates are only for agents, under /v1/agent; users authenticate with a token",
    )
}

/// A user called a route for agents.
pub fn user_on_agent_route() -> Problem {
    forbidden("this route is only for agents, which authenticate with a client certificate")
}

/// Another token has the name.
pub fn token_name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "name-taken",
        format!("a token named {name} already exists"),
    )
    .field("name")
    .hint("choose another name, or revoke that token first")
    .hint(Hint::on(
        &HintAction::Revoke,
        HintKind::Token,
        name.as_str(),
    ))
}

/// The token has too many open requests or streams.
pub fn too_many_open_requests(what: &str, most: usize) -> Problem {
    Problem::new(
        429,
        "too-many-open-requests",
        format!("this token has reached its limit of {most} open {what}"),
    )
    .hint("close some of them, or use a separate token for each program")
}

/// The token was revoked or expired while the request was waiting.
pub fn token_ended() -> Problem {
    Problem::new(
        401,
        "invalid-credential",
        "the token was revoked or expired while the request was waiting",
    )
    .hint(create_token(None))
}
