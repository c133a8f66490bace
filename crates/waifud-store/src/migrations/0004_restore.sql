-- What a restored database does not know yet, and who has confirmed it.

-- Whether the node has said, since the database was restored, what runs on it in nobody's list.
ALTER TABLE nodes ADD COLUMN swept INTEGER NOT NULL DEFAULT 1;
-- Whether an operator has confirmed for this node that the database is the right one.
ALTER TABLE nodes ADD COLUMN confirmed INTEGER NOT NULL DEFAULT 1;
-- It was in the database when that was restored, and its node is not confirmed yet.
ALTER TABLE instances ADD COLUMN restored INTEGER NOT NULL DEFAULT 0;
