-- What proves who somebody is, away from the unix socket. A secret stands here only as its SHA-256: it is 256 random
-- bits, which nobody finds again by trying, so no slow hash is needed.

CREATE TABLE tokens (
    name         TEXT PRIMARY KEY,
    -- The part of the token that is no secret: its row is found by it.
    id           BLOB NOT NULL UNIQUE CHECK (length(id) = 8),
    secret       BLOB NOT NULL CHECK (length(secret) = 32),
    role         TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER
) STRICT;
