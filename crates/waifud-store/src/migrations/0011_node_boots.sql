-- Which boot of its machine each node was last heard of in (a UUID as text); null until it has said so.
ALTER TABLE nodes ADD COLUMN boot_id TEXT;
