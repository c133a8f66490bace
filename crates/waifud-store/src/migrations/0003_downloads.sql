-- Templates on their way: each row is one template that somebody asked for by URL. Rows with one `source` share one file.

CREATE TABLE downloads (
    template   TEXT PRIMARY KEY,
    source     BLOB NOT NULL CHECK (length(source) = 32),
    request    TEXT NOT NULL,
    -- Null while it goes on; else the problem that ended it.
    error      TEXT,
    -- What the server named the version whose beginning lies here: an ETag or a date.
    validator  TEXT,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX downloads_by_source ON downloads (source);
