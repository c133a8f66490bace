-- Networks of guests. Every node routes `default`; the others are existing bridges of hosts, by name.

CREATE TABLE networks (
    name       TEXT PRIMARY KEY,
    -- Null only for `default`.
    bridge     TEXT UNIQUE,
    created_at INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO networks (name) VALUES ('default');

-- The instances with a nic on each network. Kept after a delete until the node has confirmed it.
CREATE TABLE network_users (
    network  TEXT NOT NULL REFERENCES networks (name),
    instance BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    PRIMARY KEY (network, instance)
) STRICT, WITHOUT ROWID;
CREATE INDEX network_users_by_instance ON network_users (instance);
INSERT INTO network_users (network, instance) SELECT 'default', id FROM instances;
