//! The only place with SQL: one SQLite file, one writer with group commit, readers beside it.
