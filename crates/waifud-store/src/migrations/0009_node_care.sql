-- Labels that operators set on a node, in addition to those that it reports.
ALTER TABLE nodes ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';

-- Removed nodes. Guests may still run on them, so their subnets are not assigned to other nodes.
CREATE TABLE removed_nodes (
    id         BLOB PRIMARY KEY CHECK (length(id) = 16),
    name       TEXT NOT NULL,
    subnet     TEXT NOT NULL UNIQUE,
    removed_at INTEGER NOT NULL
) STRICT;
