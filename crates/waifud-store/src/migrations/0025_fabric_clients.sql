-- Machines that are not nodes and reach guests through the mesh.
CREATE TABLE fabric_clients (
    name       TEXT PRIMARY KEY,
    public_key TEXT NOT NULL UNIQUE,
    address    TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The network that their addresses are from. It is reserved when the first client is added, and stays reserved.
CREATE TABLE client_subnet (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    subnet TEXT NOT NULL
) STRICT;
