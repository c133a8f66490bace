//! Problems with credentials, roles and the limits of one token.

use waifud_api::Problem;
use waifud_types::{Name, Role};

/// Who asks may not.
pub fn forbidden(hint: &str) -> Problem {
    Problem::new(403, "forbidden", "you may not do that").hint(hint)
}

/// Nobody said who asks.
pub fn no_credential() -> Problem {
    Problem::new(401, "missing-credential", "this request does not say who asks").hint(
        "send a token as Authorization: Bearer …; an administrator makes one with waifuctl token create NAME --role ROLE",
    )
}

/// What was sent to prove it proves nothing. One answer for every reason: guessers learn nothing.
pub fn bad_credential() -> Problem {
    Problem::new(401, "invalid-credential", "the token is unknown, revoked or expired").hint(
        "an administrator sees the tokens with waifuctl token list, and makes one with waifuctl token create NAME --role ROLE",
    )
}

/// Too many wrong tokens came from there.
pub fn too_many_attempts() -> Problem {
    Problem::new(
        429,
        "too-many-attempts",
        "too many wrong tokens came from this address",
    )
    .hint("wait as long as Retry-After says, then send a token that is valid")
}

/// The role does not suffice.
pub fn role_too_low(who: &str, own: Role, needed: Role) -> Problem {
    Problem::new(403, "insufficient-role", format!("this needs the role {needed}; {who} is {own}"))
        .hint(format!("ask an administrator, or use a token with the role {needed}: waifuctl token create NAME --role {needed}"))
}

/// A node's certificate where people ask.
pub fn for_people() -> Problem {
    forbidden("client certificates are for agents, under /v1/agent; people send a token")
}

/// A person where nodes report.
pub fn for_agents() -> Problem {
    forbidden("this route is for agents, which prove themselves with a client certificate")
}

/// A token has the name.
pub fn token_name_taken(name: &Name) -> Problem {
    Problem::new(409, "name-taken", format!("a token named {name} exists"))
        .field("name")
        .hint("choose another name, or revoke that one first: waifuctl token revoke NAME")
}

/// One token holds too many requests or streams at once.
pub fn token_holds_too_many(what: &str, most: usize) -> Problem {
    Problem::new(
        429,
        "too-many-open-requests",
        format!("this token holds {most} {what} already, the most that one token may hold"),
    )
    .hint("end some of them, or use another token for other programs")
}

/// The token was valid when the request began, and is not any more.
pub fn token_ended() -> Problem {
    Problem::new(
        401,
        "invalid-credential",
        "the token was revoked or has expired while the request waited",
    )
    .hint("an administrator makes a token with waifuctl token create NAME --role ROLE")
}
