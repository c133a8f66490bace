-- State after a restore: the reports of nodes, and the confirmations of operators.

-- Whether the node has reported its unmanaged objects since the database was restored.
ALTER TABLE nodes ADD COLUMN swept INTEGER NOT NULL DEFAULT 1;
-- Whether an operator has confirmed that the database is the right one for this node.
ALTER TABLE nodes ADD COLUMN confirmed INTEGER NOT NULL DEFAULT 1;
-- Whether it was in the restored database and its node is not confirmed yet.
ALTER TABLE instances ADD COLUMN restored INTEGER NOT NULL DEFAULT 0;
