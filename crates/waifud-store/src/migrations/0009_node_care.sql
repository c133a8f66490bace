-- Labels that an operator gave a node, beside those that it tells of itself.
ALTER TABLE nodes ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';

-- Nodes that were removed: guests may still run on one with addresses of its subnet, so nobody is given it.
CREATE TABLE removed_nodes (
    id         BLOB PRIMARY KEY CHECK (length(id) = 16),
    name       TEXT NOT NULL,
    subnet     TEXT NOT NULL UNIQUE,
    removed_at INTEGER NOT NULL
) STRICT;
