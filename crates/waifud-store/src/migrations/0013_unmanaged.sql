-- Objects on a node that are not in the database are called unmanaged.
ALTER TABLE nodes RENAME COLUMN unclaimed_count TO unmanaged_count;
ALTER TABLE nodes RENAME COLUMN unclaimed_addresses TO unmanaged_addresses;
UPDATE events SET kind = 'instance.adopted' WHERE kind = 'instance.claimed';
UPDATE events SET kind = 'node.unmanaged' WHERE kind = 'node.unclaimed';
