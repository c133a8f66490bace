//! The history: extended by every change, read by lists and watches, trimmed by number and age.

use rusqlite::{Connection, OptionalExtension, Row, named_params};
use waifud_types::event::{Actor, Cause, Event, ObjectRef};
use waifud_types::{Generation, Revision, Timestamp};

use crate::codec::{count, json, maybe_count, time, to_i64, to_json};
use crate::{ReadTx, StoreError, WriteTx};

/// A new event. Its revision follows from the commit order.
#[derive(Clone, PartialEq, Debug)]
pub struct NewEvent {
    /// The time.
    pub at: Timestamp,
    /// The kind, for example `instance.created`.
    pub kind: &'static str,
    /// The object.
    pub object: ObjectRef,
    /// The actor and the request that caused it.
    pub cause: Cause,
    /// The spec's generation.
    pub generation: Option<Generation>,
    /// A code for scripts.
    pub reason: Option<String>,
    /// A message for users, without secrets.
    pub message: String,
    /// Further data, without secrets.
    pub details: serde_json::Value,
}

/// A filter for events.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventFilter {
    /// About the object with this id or name.
    pub object: Option<String>,
    /// About objects of this type, for example `instance`.
    pub object_type: Option<String>,
}

impl EventFilter {
    /// Without an object, reads the history in order; with one, only that object's events, through the indexes.
    fn condition(&self) -> &'static str {
        if self.object.is_some() {
            "(object_id = :object OR object_name = :object) AND (:type IS NULL OR object_type = :type)"
        } else {
            ":object IS NULL AND (:type IS NULL OR object_type = :type)"
        }
    }
}

pub(crate) fn newest(conn: &Connection) -> Result<u64, StoreError> {
    let newest: Option<i64> = conn
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'events'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(newest.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
}

impl WriteTx<'_> {
    /// Appends to the history and returns the revision of this change.
    pub fn emit(&mut self, event: &NewEvent) -> Result<Revision, StoreError> {
        let number = self
            .conn
            .prepare_cached(
                "INSERT INTO events (at, kind, object_type, object_id, object_name, actor, request_id, generation,
                                     reason, message, details)
                 VALUES (:at, :kind, :object_type, :object_id, :object_name, :actor, :request_id, :generation,
                         :reason, :message, :details)",
            )?
            .insert(named_params! {
                ":at": event.at.as_microsecond(),
                ":kind": event.kind,
                ":object_type": event.object.kind,
                ":object_id": event.object.id,
                ":object_name": event.object.name,
                ":actor": to_json("an actor", &event.cause.actor)?,
                ":request_id": event.cause.request_id,
                ":generation": event.generation.map(|g| to_i64(g.0)),
                ":reason": event.reason,
                ":message": event.message,
                ":details": to_json("an event's details", &event.details)?,
            })?;
        let number = u64::try_from(number).unwrap_or(0);
        self.advance(number);
        Ok(self.at(number))
    }

    /// Deletes all but the newest `keep` events, and those up to number `old`, at most `limit` at once. Returns how
    /// many were deleted.
    pub fn trim_events(&mut self, keep: u64, old: u64, limit: u64) -> Result<usize, StoreError> {
        let last_by_count = to_i64(self.newest()).saturating_sub(to_i64(keep));
        let removed = self
            .conn
            .prepare_cached(
                "DELETE FROM events WHERE revision IN (
                     SELECT revision FROM events WHERE revision <= ?1 ORDER BY revision LIMIT ?2)",
            )?
            .execute((last_by_count.max(to_i64(old)), to_i64(limit)))?;
        Ok(removed)
    }
}

impl ReadTx<'_> {
    /// Events after number `after`, oldest first, at most `limit`.
    pub fn events(
        &self,
        after: u64,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        self.events_in_order("ASC", after, filter, limit)
    }

    /// The newest `limit` events that match, oldest first.
    pub fn newest_events(
        &self,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        let mut events = self.events_in_order("DESC", 0, filter, limit)?;
        events.reverse();
        Ok(events)
    }

    fn events_in_order(
        &self,
        order: &str,
        after: u64,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        let mut statement = self.conn.prepare_cached(&format!(
            "SELECT * FROM events WHERE revision > :after AND {} ORDER BY revision {order} LIMIT :limit",
            filter.condition()
        ))?;
        let rows = statement.query(named_params! {
            ":after": to_i64(after),
            ":object": filter.object,
            ":type": filter.object_type,
            ":limit": limit,
        })?;
        self.collect_events(rows)
    }

    /// The newest `limit` events about the object with this id, oldest first.
    pub fn newest_events_of(&self, object_id: &str, limit: u32) -> Result<Vec<Event>, StoreError> {
        let mut statement = self.conn.prepare_cached(
            "SELECT * FROM events WHERE object_id = ?1 ORDER BY revision DESC LIMIT ?2",
        )?;
        let rows = statement.query((object_id, limit))?;
        let mut events = self.collect_events(rows)?;
        events.reverse();
        Ok(events)
    }

    /// The number of the newest event in this view.
    pub fn newest_event(&self) -> Result<u64, StoreError> {
        newest(self.conn)
    }

    /// The number before the oldest stored event: after it, the history is complete.
    pub fn oldest_resumable(&self) -> Result<u64, StoreError> {
        let oldest: Option<i64> = self
            .conn
            .prepare_cached("SELECT min(revision) FROM events")?
            .query_row([], |row| row.get(0))?;
        match oldest.and_then(|n| u64::try_from(n).ok()) {
            Some(oldest) => Ok(oldest.saturating_sub(1)),
            None => self.newest_event(),
        }
    }

    fn collect_events(&self, mut rows: rusqlite::Rows<'_>) -> Result<Vec<Event>, StoreError> {
        let mut events = Vec::new();
        while let Some(row) = rows.next()? {
            events.push(self.event(row)?);
        }
        Ok(events)
    }

    fn event(&self, row: &Row<'_>) -> Result<Event, StoreError> {
        Ok(Event {
            revision: self.at(count(row, "revision")?),
            at: time(row, "at")?,
            kind: row.get("kind")?,
            object: ObjectRef {
                kind: row.get("object_type")?,
                id: row.get("object_id")?,
                name: row.get("object_name")?,
            },
            actor: json::<Actor>(row, "actor")?,
            request_id: row.get("request_id")?,
            generation: maybe_count(row, "generation")?.map(Generation),
            reason: row.get("reason")?,
            message: row.get("message")?,
            details: json(row, "details")?,
        })
    }
}
