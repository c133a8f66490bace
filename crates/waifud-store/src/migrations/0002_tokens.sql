-- API tokens, for access over the network. Only the SHA-256 of a secret is stored. It has 256 random bits and cannot be
-- guessed, so a slow hash is not needed.

CREATE TABLE tokens (
    name         TEXT PRIMARY KEY,
    -- The public part of the token, which identifies its row.
    id           BLOB NOT NULL UNIQUE CHECK (length(id) = 8),
    secret       BLOB NOT NULL CHECK (length(secret) = 32),
    role         TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER
) STRICT;
