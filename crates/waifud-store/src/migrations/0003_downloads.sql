-- Downloads of templates: one row for each template that was requested by URL. Rows with the same `source` share a file.

CREATE TABLE downloads (
    template   TEXT PRIMARY KEY,
    source     BLOB NOT NULL CHECK (length(source) = 32),
    request    TEXT NOT NULL,
    -- Null while it is running; otherwise the problem that ended it.
    error      TEXT,
    -- The server's validator of the partial file: an ETag or a date.
    validator  TEXT,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX downloads_by_source ON downloads (source);
