-- The boot id at the last contact of each node (a UUID as text); null until it was reported.
ALTER TABLE nodes ADD COLUMN boot_id TEXT;
