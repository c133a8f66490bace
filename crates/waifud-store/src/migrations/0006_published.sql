-- Published ports of a node; each belongs to one instance. Kept after a delete until the node has confirmed it.
CREATE TABLE published (
    node     BLOB NOT NULL REFERENCES nodes (id),
    protocol TEXT NOT NULL,
    port     INTEGER NOT NULL,
    instance BLOB NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    PRIMARY KEY (node, protocol, port)
) STRICT, WITHOUT ROWID;
CREATE INDEX published_by_instance ON published (instance);
