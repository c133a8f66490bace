-- lost_node: the name of the node that was removed while the disks of the instance were on it. Such an instance has no node,
-- but it is not placed before a user has recreated it.
ALTER TABLE instances ADD COLUMN lost_node TEXT;
DROP INDEX instances_unplaced;
CREATE INDEX instances_unplaced ON instances (created_at, id, wait_class)
    WHERE node IS NULL AND deleting = 0 AND lost_node IS NULL;
