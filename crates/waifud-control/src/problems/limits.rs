//! What a token may not hold or do any more, and a database that does not work.

use waifud_api::Problem;

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

/// The database can't be written.
pub fn database_trouble(why: &str) -> Problem {
    Problem::new(503, "database-unusable", why).hint(
        "see waifud's log; where the database is lost, stop waifud and restore a backup: waifud restore FILE",
    )
}
