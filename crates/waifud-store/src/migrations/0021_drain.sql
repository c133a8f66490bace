-- When an administrator began to drain a node, and whether its instances may get other addresses. Null: it is not drained.
ALTER TABLE nodes ADD COLUMN drain_began_at INTEGER;
ALTER TABLE nodes ADD COLUMN drain_new_address INTEGER NOT NULL DEFAULT 0;
CREATE INDEX nodes_draining ON nodes (name) WHERE drain_began_at IS NOT NULL;
