//! What a job works with: a view to read from, and a transaction to write in.
//!
//! The typed functions of both are spread over one file per noun.

use std::ops::Deref;
use std::sync::Arc;

use rusqlite::Connection;
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

    /// A number of the history as a revision of this database's life.
    pub fn at(&self, number: u64) -> Revision {
        Revision {
            incarnation: self.incarnation,
            number,
        }
    }
}

/// A job's own part of the writer's transaction. Everything in it is undone when the job returns an error.
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

    /// Every node with its room, by name, from memory where that is known to be true. For jobs that change rooms by
    /// [`WriteTx::place`] and in no other way; others read [`ReadTx::node_capacities`].
    pub fn capacities_for_placement(&mut self) -> Result<Arc<Vec<NodeCapacity>>, StoreError> {
        self.capacities.get(self.read)
    }

    /// The number of the newest event, this job's own included.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Whoever waits for this is woken once the group is committed.
    pub fn touch(&mut self, topic: Topic) {
        if !self.touched.contains(&topic) {
            self.touched.push(topic);
        }
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
