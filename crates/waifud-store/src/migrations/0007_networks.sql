-- Networks of guests. Every node routes `default`; the others are bridges that hosts already have, by their name there.

CREATE TABLE networks (
    name       TEXT PRIMARY KEY,
    -- Null for `default` only.
    bridge     TEXT UNIQUE,
    created_at INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO networks (name) VALUES ('default');

-- Which instances have a nic on which network. The row outlives a delete until the node has confirmed it.
CREATE TABLE network_users (
    network  TEXT NOT NULL REFERENCES networks (name),
    instance BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    PRIMARY KEY (network, instance)
) STRICT, WITHOUT ROWID;
CREATE INDEX network_users_by_instance ON network_users (instance);
INSERT INTO network_users (network, instance) SELECT 'default', id FROM instances;
