-- A node that gives an instance up first releases it: the role 'released' is stored when the node has reported that it
-- does not start the instance again. Releases are sent to their nodes in the order of slice_revision. stop: whether the
-- node shuts the guest down.
CREATE TABLE ownership_with_releases (
    instance       BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    node           BLOB NOT NULL REFERENCES nodes (id),
    epoch          INTEGER NOT NULL,
    role           TEXT NOT NULL CHECK (role IN ('owner', 'receiving', 'releasing', 'released')),
    stop           INTEGER NOT NULL DEFAULT 0,
    slice_revision INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (instance, node)
) STRICT, WITHOUT ROWID;
INSERT INTO ownership_with_releases (instance, node, epoch, role) SELECT instance, node, epoch, role FROM ownership;
-- Its indexes and triggers go with it.
DROP TABLE ownership;
ALTER TABLE ownership_with_releases RENAME TO ownership;
-- The instances of an owner are found by instances.node.
CREATE INDEX ownership_by_node ON ownership (node, slice_revision) WHERE role <> 'owner';
-- That an instance has one owner is checked here: an index would cost each create one more insertion.
CREATE TRIGGER owner_added AFTER INSERT ON ownership WHEN NEW.role = 'owner' BEGIN
    SELECT RAISE(ABORT, 'an instance has one owner') WHERE EXISTS (
        SELECT 1 FROM ownership WHERE instance = NEW.instance AND node <> NEW.node AND role = 'owner');
    UPDATE instances SET node = NEW.node WHERE id = NEW.instance AND node IS NOT NEW.node;
END;
CREATE TRIGGER owner_changed AFTER UPDATE OF role ON ownership WHEN NEW.role = 'owner' BEGIN
    SELECT RAISE(ABORT, 'an instance has one owner') WHERE EXISTS (
        SELECT 1 FROM ownership WHERE instance = NEW.instance AND node <> NEW.node AND role = 'owner');
    UPDATE instances SET node = NEW.node WHERE id = NEW.instance AND node IS NOT NEW.node;
END;
CREATE TRIGGER owner_removed AFTER DELETE ON ownership WHEN OLD.role = 'owner' BEGIN
    UPDATE instances SET node = NULL WHERE id = OLD.instance AND node = OLD.node;
END;

-- Problem codes that were renamed, as stored with failed downloads and in the events about them, and the reason of an
-- instance that waits for capacity.
CREATE TEMP TABLE renamed_codes (old TEXT PRIMARY KEY, new TEXT NOT NULL);
INSERT INTO renamed_codes VALUES
    ('bad-url', 'invalid-url'),
    ('bad-image', 'invalid-image'),
    ('bad-checksums', 'invalid-checksums'),
    ('not-served', 'source-refused'),
    ('not-reached', 'source-unreachable'),
    ('no-room', 'insufficient-capacity');
UPDATE downloads
   SET error = (SELECT json_set(error, '$.code', new, '$.type', '/problems/' || new)
                  FROM renamed_codes WHERE old = error ->> '$.code')
 WHERE error ->> '$.code' IN (SELECT old FROM renamed_codes);
UPDATE events SET reason = (SELECT new FROM renamed_codes WHERE old = reason)
 WHERE reason IN (SELECT old FROM renamed_codes);
DROP TABLE renamed_codes;
