-- The first schema. Ids are 16-byte blobs, digests 32-byte blobs, times microseconds since 1970, sizes bytes.
-- Values that are used in conditions have columns; others are JSON.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE nodes (
    id                    BLOB PRIMARY KEY CHECK (length(id) = 16),
    name                  TEXT NOT NULL UNIQUE,
    facts                 TEXT NOT NULL,
    reachable             INTEGER NOT NULL DEFAULT 1,
    cordoned              INTEGER NOT NULL DEFAULT 0,
    subnet                TEXT NOT NULL UNIQUE,
    joined_at             INTEGER NOT NULL,
    last_contact          INTEGER,
    unclaimed             TEXT NOT NULL DEFAULT '[]',
    slice_revision        INTEGER NOT NULL,
    -- Sums of the node's reservations, updated by the triggers below.
    promised_cpus         INTEGER NOT NULL DEFAULT 0,
    promised_memory_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE images (
    digest             BLOB PRIMARY KEY CHECK (length(digest) = 32),
    size_bytes         INTEGER NOT NULL,
    virtual_size_bytes INTEGER NOT NULL,
    created_at         INTEGER NOT NULL
) STRICT;

CREATE TABLE templates (
    name         TEXT PRIMARY KEY,
    arch         TEXT NOT NULL,
    datasource   TEXT NOT NULL,
    firmware     TEXT NOT NULL,
    default_user TEXT,
    image        BLOB NOT NULL REFERENCES images (digest),
    created_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE template_revisions (
    template   TEXT NOT NULL REFERENCES templates (name) ON DELETE CASCADE,
    image      BLOB NOT NULL REFERENCES images (digest),
    arch       TEXT NOT NULL,
    source_url TEXT,
    checksum   TEXT,
    seen_at    INTEGER NOT NULL,
    PRIMARY KEY (template, image)
) STRICT;
CREATE INDEX template_revisions_by_image ON template_revisions (image);

-- One row for each existing instance, including those being deleted, so that names are unique among them.
CREATE TABLE instances (
    id             BLOB PRIMARY KEY CHECK (length(id) = 16),
    name           TEXT NOT NULL UNIQUE,
    generation     INTEGER NOT NULL,
    epoch          INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    template       TEXT NOT NULL,
    image          BLOB NOT NULL REFERENCES images (digest),
    arch           TEXT NOT NULL,
    datasource     TEXT NOT NULL,
    firmware       TEXT NOT NULL,
    node           BLOB REFERENCES nodes (id),
    state          TEXT NOT NULL,
    deleting       INTEGER NOT NULL DEFAULT 0,
    labels         TEXT NOT NULL,
    spec           TEXT NOT NULL,
    status         TEXT NOT NULL,
    placement      TEXT NOT NULL,
    ssh_keys       TEXT NOT NULL,
    cloud_id       TEXT NOT NULL,
    bundle         BLOB,
    slice_revision INTEGER NOT NULL
) STRICT;
CREATE INDEX instances_by_node ON instances (node, slice_revision);
CREATE INDEX instances_by_state ON instances (state, name);
CREATE INDEX instances_by_template ON instances (template, name);
CREATE INDEX instances_by_image ON instances (image);
CREATE INDEX instances_unplaced ON instances (created_at) WHERE node IS NULL AND deleting = 0;

CREATE TABLE instance_labels (
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    instance BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    PRIMARY KEY (key, value, instance)
) STRICT, WITHOUT ROWID;
CREATE INDEX instance_labels_by_instance ON instance_labels (instance);

-- Separate from `instances`, so that lists do not read megabytes of text.
CREATE TABLE user_data (
    instance BLOB PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
    text     TEXT NOT NULL
) STRICT;

-- The fixed MAC address and the IP address of a nic. Kept after a delete until the node has confirmed it.
CREATE TABLE leases (
    instance BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    nic      INTEGER NOT NULL,
    mac      BLOB NOT NULL UNIQUE CHECK (length(mac) = 6),
    address  INTEGER UNIQUE,
    PRIMARY KEY (instance, nic)
) STRICT, WITHOUT ROWID;

-- The capacity that a placement reserves.
CREATE TABLE reservations (
    instance     BLOB PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
    node         BLOB NOT NULL REFERENCES nodes (id),
    cpus         INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
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

-- The disk space that is reserved in each pool of a node.
CREATE TABLE volumes (
    instance   BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    disk       TEXT NOT NULL,
    node       BLOB NOT NULL REFERENCES nodes (id),
    pool       TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (instance, disk)
) STRICT, WITHOUT ROWID;
CREATE INDEX volumes_by_pool ON volumes (node, pool, size_bytes);

CREATE TABLE tombstones (
    instance       BLOB NOT NULL,
    node           BLOB NOT NULL REFERENCES nodes (id),
    name           TEXT NOT NULL,
    epoch          INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    slice_revision INTEGER NOT NULL,
    PRIMARY KEY (instance, node)
) STRICT, WITHOUT ROWID;
CREATE INDEX tombstones_by_node ON tombstones (node, slice_revision);

CREATE TABLE bundles (
    digest     BLOB PRIMARY KEY CHECK (length(digest) = 32),
    instance   BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    key        TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    ciphertext BLOB NOT NULL
) STRICT;
CREATE INDEX bundles_by_instance ON bundles (instance, created_at);

-- AUTOINCREMENT: numbers are never reused, even after the newest rows were trimmed.
CREATE TABLE events (
    revision    INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    object_type TEXT NOT NULL,
    object_id   TEXT NOT NULL,
    object_name TEXT NOT NULL,
    actor       TEXT NOT NULL,
    request_id  TEXT,
    generation  INTEGER,
    reason      TEXT,
    message     TEXT NOT NULL,
    details     TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_object_id ON events (object_id, revision);
CREATE INDEX events_by_object_name ON events (object_name, revision);
CREATE INDEX events_by_time ON events (at);

CREATE TABLE idempotency (
    principal  TEXT NOT NULL,
    key        TEXT NOT NULL,
    request    BLOB NOT NULL,
    status     INTEGER NOT NULL,
    body       BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (principal, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_time ON idempotency (created_at);
