-- The key of each node, and the tokens with which nodes join once.
-- A key is the SHA-256 of its DER SubjectPublicKeyInfo; a secret is the SHA-256 of the token's 32 random bytes.

CREATE TABLE node_keys (
    node        BLOB PRIMARY KEY CHECK (length(node) = 16),
    name        TEXT NOT NULL UNIQUE,
    key         BLOB NOT NULL CHECK (length(key) = 32),
    admitted_at INTEGER NOT NULL
) STRICT;

CREATE TABLE join_tokens (
    id         TEXT PRIMARY KEY,
    secret     BLOB NOT NULL UNIQUE CHECK (length(secret) = 32),
    name       TEXT,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    node       BLOB,
    key        BLOB
) STRICT;
