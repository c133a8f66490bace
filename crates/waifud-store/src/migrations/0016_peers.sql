-- The revision of the last change of what all other nodes know about a node. Existing nodes get the next revision, so that
-- agents that resume from any earlier one receive them.
ALTER TABLE nodes ADD COLUMN peer_revision INTEGER NOT NULL DEFAULT 0;
UPDATE nodes SET peer_revision = 1 + coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0);
CREATE INDEX nodes_by_peer_revision ON nodes (peer_revision);

-- Cluster-wide objects that were deleted. An agent that resumes from an older revision receives the deletion. The rows are
-- kept: only the removal of a node adds one.
CREATE TABLE deleted_objects (
    kind     TEXT NOT NULL,
    id       BLOB NOT NULL CHECK (length(id) = 16),
    revision INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX deleted_objects_by_revision ON deleted_objects (kind, revision);
