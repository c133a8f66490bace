//! The only writer: queued jobs, many of them in one durable transaction.
//!
//! ```text
//!  job ─┐            BEGIN ─ SAVEPOINT job RELEASE ─ SAVEPOINT job ROLLBACK TO ─ … ─ COMMIT (one fsync)
//!  job ─┼─► queue ─► writer thread                                                    │
//!  job ─┘                                                    answers, then wake-ups ◄─┘
//! ```
//!
//! Jobs that arrive during a commit form the next group. Under load, one fsync covers many changes; otherwise a change
//! does not wait. A job that fails rolls back its own changes only. Jobs are acknowledged after the commit. For the
//! simulation, the same function runs one job at once without a thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError};

use rusqlite::Connection;
use tokio::sync::oneshot;
use waifud_kit::planted_bugs::Bug;
use waifud_types::Incarnation;

use crate::failpoints;
use crate::health::LastFailure;
use crate::node_capacities::NodeCapacities;
use crate::tx::WriteTx;
use crate::wakeups::Wakeups;
use crate::{StoreError, Topic, connection};

/// The maximum number of jobs in one transaction, which bounds how long the first one waits.
const GROUP_MAX: usize = 256;

/// The size of a database page in bytes.
const PAGE: u64 = 4096;

/// A queued change.
pub(crate) trait Job: Send {
    /// Runs the job. Returns false if its changes must be rolled back.
    fn run(&mut self, tx: &mut WriteTx<'_>) -> bool;
    /// Sends the answer, after the commit or its failure.
    fn finish(self: Box<Self>, commit: Result<(), &StoreError>);
}

/// A job with the channel for its answer.
pub(crate) struct TypedJob<F, T, E> {
    work: Option<F>,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> TypedJob<F, T, E> {
    pub(crate) fn new(work: F) -> (Self, oneshot::Receiver<Result<T, E>>) {
        let (reply, answer) = oneshot::channel();
        let job = Self {
            work: Some(work),
            outcome: None,
            reply,
        };
        (job, answer)
    }
}

impl<F, T, E> Job for TypedJob<F, T, E>
where
    F: FnOnce(&mut WriteTx<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<StoreError> + Send,
{
    fn run(&mut self, tx: &mut WriteTx<'_>) -> bool {
        let Some(work) = self.work.take() else {
            return false;
        };
        let outcome = work(tx);
        let keep = outcome.is_ok();
        self.outcome = Some(outcome);
        keep
    }

    fn finish(self: Box<Self>, commit: Result<(), &StoreError>) {
        let answer = match (self.outcome, commit) {
            // Its changes were rolled back with the group, or it was not run.
            (Some(Ok(_)) | None, Err(error)) => {
                let commit = StoreError::Commit {
                    why: match error {
                        StoreError::Commit { why, .. } => why.clone(),
                        other => other.to_string(),
                    },
                    full: error.is_full(),
                };
                Err(commit.into())
            }
            (Some(outcome), _) => outcome,
            (None, Ok(())) => Err(StoreError::Panicked.into()),
        };
        // The caller may have gone; the change is kept.
        let _nobody_waits = self.reply.send(answer);
    }
}

/// The queue of jobs.
pub(crate) type Queue = Sender<Box<dyn Job>>;

/// The writing connection and the subscribers.
pub(crate) struct Core {
    pub(crate) conn: Connection,
    pub(crate) incarnation: Incarnation,
    pub(crate) wakeups: Arc<Wakeups>,
    pub(crate) capacities: NodeCapacities,
    /// The path of the database, for checking its free space.
    pub(crate) dir: PathBuf,
    /// Whether the last group failed, so that a lasting failure is logged once.
    pub(crate) failing: bool,
    /// Why the last group failed, for health checks.
    pub(crate) last_failure: LastFailure,
}

impl Core {
    /// Runs a group of jobs in one transaction and answers them.
    pub(crate) fn run_group(&mut self, mut jobs: Vec<Box<dyn Job>>) {
        match self.commit_group(&mut jobs) {
            Ok((newest, touched)) => {
                if std::mem::take(&mut self.failing) {
                    self.note_failure(None);
                    tracing::info!("the database accepts changes again");
                }
                // Before the answers, so that no caller gets a revision that is not published yet. Callers are answered
                // before watchers are woken.
                self.wakeups.grown(newest);
                for job in jobs {
                    job.finish(Ok(()));
                }
                self.wakeups.touched(newest, &touched);
            }
            Err(error) => {
                self.capacities.forget();
                let error = self.failure(&error);
                let why = match &error {
                    // Reported as missing space, not as a damaged database.
                    StoreError::Commit { full: true, .. } => None,
                    StoreError::Commit { why, .. } => Some(why.clone()),
                    other => Some(other.to_string()),
                };
                self.note_failure(why);
                if std::mem::replace(&mut self.failing, true) {
                    tracing::debug!(%error, "a group of changes could not be committed");
                } else {
                    tracing::error!(%error, "cannot commit a group of changes; later groups are still tried");
                }
                for job in jobs {
                    job.finish(Err(&error));
                }
            }
        }
    }

    fn note_failure(&self, why: Option<String>) {
        *self
            .last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// The error of a failed group. A statement that finds no space may roll back the whole transaction, and the
    /// visible error is then that of the next statement. So the free space of the filesystem is checked.
    fn failure(&self, error: &StoreError) -> StoreError {
        StoreError::Commit {
            why: std::error::Error::source(error)
                .map_or_else(|| error.to_string(), ToString::to_string),
            full: error.is_full() || nothing_free(&self.dir),
        }
    }

    fn commit_group(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(u64, Vec<Topic>), StoreError> {
        if Bug::LateCommit.is_planted() && !self.conn.is_autocommit() {
            connection::run(&self.conn, "COMMIT")?;
        }
        let mut group = self
            .conn
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut newest = self.wakeups.newest();
        let mut touched = Vec::new();
        for job in jobs {
            connection::run(&group, "SAVEPOINT job")?;
            self.capacities.begin();
            let mut tx = WriteTx::new(&group, self.incarnation, newest, &mut self.capacities);
            let kept = catch_unwind(AssertUnwindSafe(|| job.run(&mut tx))).unwrap_or(false);
            if kept {
                newest = tx.newest();
                touched.append(&mut tx.into_touched());
                self.capacities.keep();
            } else {
                self.capacities.take_back();
                connection::run(&group, "ROLLBACK TO job")?;
            }
            connection::run(&group, "RELEASE job")?;
        }
        if Bug::LateCommit.is_planted() {
            group.set_drop_behavior(rusqlite::DropBehavior::Ignore);
            return Ok((newest, touched));
        }
        failpoints::COMMIT.before();
        group.commit()?;
        failpoints::COMMIT.after();
        Ok((newest, touched))
    }
}

/// Whether the filesystem has no space for a single page.
fn nothing_free(dir: &Path) -> bool {
    waifud_kit::filesystem::usage(dir).is_ok_and(|usage| usage.available < PAGE)
}

/// Starts the writer's thread. It ends, after the last queued job, when every sender is gone.
pub(crate) fn spawn(mut core: Core) -> std::io::Result<(Queue, std::thread::JoinHandle<()>)> {
    let (sender, queue): (_, Receiver<Box<dyn Job>>) = channel();
    let thread = std::thread::Builder::new()
        .name("waifud-store".to_owned())
        .spawn(move || {
            while let Ok(first) = queue.recv() {
                let mut group = vec![first];
                group.extend(queue.try_iter().take(GROUP_MAX - 1));
                core.run_group(group);
            }
        })?;
    Ok((sender, thread))
}
