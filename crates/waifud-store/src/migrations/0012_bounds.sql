-- The unmanaged objects on nodes, separate from `nodes`: they may be megabytes, and nodes are read at every heartbeat and
-- every placement, which need only the addresses.
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

-- Instances of one class have equal requirements: if one of them cannot be placed, neither can the others. Instances
-- that waited before this migration have a class each.
ALTER TABLE instances ADD COLUMN wait_class TEXT NOT NULL DEFAULT '';
UPDATE instances SET wait_class = hex(id) WHERE node IS NULL;
DROP INDEX instances_unplaced;
CREATE INDEX instances_unplaced ON instances (created_at, id, wait_class) WHERE node IS NULL AND deleting = 0;

-- The group whose instances are spread over nodes.
ALTER TABLE instances ADD COLUMN spread_group TEXT;
UPDATE instances SET spread_group = json_extract(spec, '$.placement.spread.group');
CREATE INDEX instances_by_spread_group ON instances (spread_group, node) WHERE spread_group IS NOT NULL;

-- The newest revision at points in the running time of waifud, in seconds, which does not depend on the system clock.
CREATE TABLE history_marks (
    running_s INTEGER PRIMARY KEY,
    revision  INTEGER NOT NULL
) STRICT;
-- The age of an answer is that of the newest event at that time.
ALTER TABLE idempotency ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
DROP INDEX idempotency_by_time;
CREATE INDEX idempotency_by_revision ON idempotency (revision);
DROP INDEX events_by_time;
