-- The fabric that an administrator has chosen; no row means the default.
CREATE TABLE fabric (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    kind TEXT NOT NULL
) STRICT;

-- What the node has reported for the fabric; other nodes receive it as a part of their peer.
ALTER TABLE nodes ADD COLUMN mesh TEXT NOT NULL DEFAULT 'null';

-- Nodes receive their own configuration again, because it contains the fabric now.
UPDATE nodes SET slice_revision = 1 + coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0);
