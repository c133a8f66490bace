-- The subnet that the address of an instance on `default` belongs to, if it is not that of its node: the instance kept its address
-- when it moved.
ALTER TABLE instances ADD COLUMN home TEXT;
CREATE INDEX instances_with_home ON instances (node) WHERE home IS NOT NULL;

-- Whether the instance gets another address on its new node. Those that are under way do.
ALTER TABLE moves ADD COLUMN new_address INTEGER NOT NULL DEFAULT 1;
