-- Moves of instances to another node, at most one for each instance. received: what the receiving node has reported last.
-- was_on: whether the guest was on when the move began. The
-- names are those of the nodes when the move began: a node may be removed meanwhile.
CREATE TABLE moves (
    instance    BLOB PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
    source      BLOB NOT NULL,
    source_name TEXT NOT NULL,
    target      BLOB NOT NULL,
    target_name TEXT NOT NULL,
    state       TEXT NOT NULL,
    received    TEXT NOT NULL,
    was_on      INTEGER NOT NULL,
    began_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX moves_by_target ON moves (target);
CREATE INDEX moves_by_source ON moves (source);
