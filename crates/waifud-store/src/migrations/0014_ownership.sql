-- The nodes that have a part in an instance: the owner, and during a handover the node that releases the instance and the
-- node that receives it. An instance has at most one owner. instances.node is the owner's id, kept by the triggers below;
-- it stays while the owner releases, until the receiving node becomes the owner.
CREATE TABLE ownership (
    instance BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    node     BLOB NOT NULL REFERENCES nodes (id),
    epoch    INTEGER NOT NULL,
    role     TEXT NOT NULL CHECK (role IN ('owner', 'receiving', 'releasing')),
    PRIMARY KEY (instance, node)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX ownership_one_owner ON ownership (instance) WHERE role = 'owner';
CREATE INDEX ownership_by_node ON ownership (node);
INSERT INTO ownership (instance, node, epoch, role) SELECT id, node, epoch, 'owner' FROM instances WHERE node IS NOT NULL;

CREATE TRIGGER owner_added AFTER INSERT ON ownership WHEN NEW.role = 'owner' BEGIN
    UPDATE instances SET node = NEW.node WHERE id = NEW.instance AND node IS NOT NEW.node;
END;
CREATE TRIGGER owner_changed AFTER UPDATE OF role ON ownership WHEN NEW.role = 'owner' BEGIN
    UPDATE instances SET node = NEW.node WHERE id = NEW.instance AND node IS NOT NEW.node;
END;
CREATE TRIGGER owner_removed AFTER DELETE ON ownership WHEN OLD.role = 'owner' BEGIN
    UPDATE instances SET node = NULL WHERE id = OLD.instance AND node = OLD.node;
END;

-- Reservations and volumes of one instance on several nodes. Dropping a table fires no triggers, so the sums in nodes stay;
-- the triggers that keep them are created after the rows were copied.
CREATE TABLE reservations_by_node_key (
    instance     BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    node         BLOB NOT NULL REFERENCES nodes (id),
    cpus         INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    PRIMARY KEY (instance, node)
) STRICT, WITHOUT ROWID;
INSERT INTO reservations_by_node_key (instance, node, cpus, memory_bytes)
SELECT instance, node, cpus, memory_bytes FROM reservations;
DROP TABLE reservations;
ALTER TABLE reservations_by_node_key RENAME TO reservations;
CREATE INDEX reservations_by_node ON reservations (node);
CREATE TRIGGER reservation_made AFTER INSERT ON reservations BEGIN
    UPDATE nodes SET promised_cpus = promised_cpus + NEW.cpus,
                     promised_memory_bytes = promised_memory_bytes + NEW.memory_bytes
     WHERE id = NEW.node;
END;
CREATE TRIGGER reservation_ended AFTER DELETE ON reservations BEGIN
    UPDATE nodes SET promised_cpus = promised_cpus - OLD.cpus,
                     promised_memory_bytes = promised_memory_bytes - OLD.memory_bytes
     WHERE id = OLD.node;
END;

CREATE TABLE volumes_by_node_key (
    instance   BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    node       BLOB NOT NULL REFERENCES nodes (id),
    disk       TEXT NOT NULL,
    pool       TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (instance, node, disk)
) STRICT, WITHOUT ROWID;
INSERT INTO volumes_by_node_key (instance, node, disk, pool, size_bytes)
SELECT instance, node, disk, pool, size_bytes FROM volumes;
DROP TABLE volumes;
ALTER TABLE volumes_by_node_key RENAME TO volumes;
CREATE INDEX volumes_by_pool ON volumes (node, pool, size_bytes);
