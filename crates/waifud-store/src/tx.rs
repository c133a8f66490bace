//! The arguments of a job: a view to read from, and a transaction to write in.
//!
//! Their typed functions are in one file per kind of object.

use std::ops::Deref;
use std::sync::Arc;

use rusqlite::{Connection, Params, Row};
use waifud_types::{Incarnation, Revision};

use crate::node_capacities::NodeCapacities;
use crate::placing::NodeCapacity;
use crate::{StoreError, Topic};

/// A consistent view of the database.
#[derive(Clone, Copy)]
pub struct ReadTx<'c> {
    pub(crate) conn: &'c Connection,
    incarnation: Incarnation,
}

impl<'c> ReadTx<'c> {
    pub(crate) fn new(conn: &'c Connection, incarnation: Incarnation) -> Self {
        Self { conn, incarnation }
    }

    /// The first row of a query; `None` if there is none. The statement is kept for the next call.
    pub(crate) fn first<T>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut statement = self.conn.prepare_cached(sql)?;
        statement
            .query_and_then(parameters, read)?
            .next()
            .transpose()
    }

    /// All rows of a query. The statement is kept for the next call.
    pub(crate) fn all<T, C: FromIterator<T>>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<C, StoreError> {
        let mut statement = self.conn.prepare_cached(sql)?;
        statement.query_and_then(parameters, read)?.collect()
    }

    /// The revision in this incarnation for a number of the history.
    pub fn at(&self, number: u64) -> Revision {
        Revision {
            incarnation: self.incarnation,
            number,
        }
    }
}

/// A job's own part of the writer's transaction. It is rolled back if the job returns an error.
pub struct WriteTx<'c> {
    read: ReadTx<'c>,
    newest: u64,
    touched: Vec<Topic>,
    pub(crate) capacities: &'c mut NodeCapacities,
}

impl<'c> WriteTx<'c> {
    pub(crate) fn new(
        conn: &'c Connection,
        incarnation: Incarnation,
        newest: u64,
        capacities: &'c mut NodeCapacities,
    ) -> Self {
        Self {
            read: ReadTx::new(conn, incarnation),
            newest,
            touched: Vec::new(),
            capacities,
        }
    }

    /// Every node with its capacity, by name, from memory if that copy is valid. For jobs that change capacities by
    /// [`WriteTx::place`] only; others use [`ReadTx::node_capacities`].
    pub fn capacities_for_placement(&mut self) -> Result<Arc<Vec<NodeCapacity>>, StoreError> {
        self.capacities.get(self.read)
    }

    /// The number of the newest event, including those of this job.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Wakes the subscribers of this topic once the group is committed.
    pub fn touch(&mut self, topic: Topic) {
        if !self.touched.contains(&topic) {
            self.touched.push(topic);
        }
    }

    /// Runs a statement that deletes the row with this key. False if there is none.
    pub(crate) fn delete(&mut self, sql: &str, key: &str) -> Result<bool, StoreError> {
        Ok(self.conn.prepare_cached(sql)?.execute([key])? > 0)
    }

    pub(crate) fn advance(&mut self, newest: u64) {
        self.newest = newest;
    }

    pub(crate) fn into_touched(self) -> Vec<Topic> {
        self.touched
    }
}

impl<'c> Deref for WriteTx<'c> {
    type Target = ReadTx<'c>;

    fn deref(&self) -> &Self::Target {
        &self.read
    }
}
