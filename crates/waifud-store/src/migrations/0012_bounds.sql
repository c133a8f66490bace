-- What is on nodes and in nobody's list, away from `nodes`: it may be megabytes, and nodes are read at every heartbeat
-- and every placement, which need its addresses only.
CREATE TABLE unmanaged (
    node   BLOB PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
    things TEXT NOT NULL
) STRICT;
INSERT INTO unmanaged (node, things) SELECT id, unclaimed FROM nodes WHERE unclaimed <> '[]';
ALTER TABLE nodes ADD COLUMN unclaimed_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN unclaimed_addresses TEXT NOT NULL DEFAULT '[]';
UPDATE nodes
   SET unclaimed_count = json_array_length(unclaimed),
       unclaimed_addresses = (SELECT json_group_array(address.value)
                                FROM json_each(nodes.unclaimed) thing, json_each(thing.value, '$.addresses') address);
ALTER TABLE nodes DROP COLUMN unclaimed;

-- Instances of one class need the same of a node: while one of them can't be placed, none of the others can.
-- Those that waited before there were classes have one each.
ALTER TABLE instances ADD COLUMN wait_class TEXT NOT NULL DEFAULT '';
UPDATE instances SET wait_class = hex(id) WHERE node IS NULL;
DROP INDEX instances_unplaced;
CREATE INDEX instances_unplaced ON instances (created_at, id, wait_class) WHERE node IS NULL AND deleting = 0;

-- The group whose instances keep away from each other.
ALTER TABLE instances ADD COLUMN spread_group TEXT;
UPDATE instances SET spread_group = json_extract(spec, '$.placement.spread.group');
CREATE INDEX instances_by_spread_group ON instances (spread_group, node) WHERE spread_group IS NOT NULL;

-- How old the history is, in seconds that waifud ran, by a clock that nobody sets: which revision was the newest when.
CREATE TABLE history_marks (
    running_s INTEGER PRIMARY KEY,
    revision  INTEGER NOT NULL
) STRICT;
-- Answers are as old as the newest event of their day.
ALTER TABLE idempotency ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
DROP INDEX idempotency_by_time;
CREATE INDEX idempotency_by_revision ON idempotency (revision);
DROP INDEX events_by_time;
