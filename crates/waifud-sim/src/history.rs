//! What happened in a run: acts and faults, every message, and a digest of all of it.

use std::fmt::Write;
use std::sync::Mutex;

use waifud_kit::sync::lock;
use waifud_types::Digest;

use crate::clock::SimClock;

/// The history of a run.
pub struct History {
    clock: SimClock,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Acts and faults, which a reader of a failed run wants to see.
    acts: Vec<String>,
    /// Everything, for the digest.
    all: String,
    messages: u64,
}

impl History {
    /// An empty history with the times of this clock.
    pub fn new(clock: SimClock) -> Self {
        Self {
            clock,
            inner: Mutex::default(),
        }
    }

    /// Adds an act.
    pub fn act(&self, what: &str) {
        let line = self.line(what);
        let mut inner = lock(&self.inner);
        inner.all.push_str(&line);
        inner.all.push('\n');
        inner.acts.push(line);
    }

    /// Adds a message or another detail. It is part of the digest, but not of the shortened text.
    pub fn detail(&self, what: &str) {
        let line = self.line(what);
        let mut inner = lock(&self.inner);
        inner.all.push_str(&line);
        inner.all.push('\n');
        inner.messages += 1;
    }

    /// The number of messages.
    pub fn messages(&self) -> u64 {
        lock(&self.inner).messages
    }

    /// The digest of everything that happened.
    pub fn digest(&self) -> Digest {
        Digest::of(lock(&self.inner).all.as_bytes())
    }

    /// Everything, one line each.
    pub fn full(&self) -> String {
        lock(&self.inner).all.clone()
    }

    /// The last acts, at most this many.
    pub fn shortened(&self, most: usize) -> String {
        let inner = lock(&self.inner);
        let left_out = inner.acts.len().saturating_sub(most);
        let mut text = String::new();
        if left_out > 0 {
            let _cannot_fail = writeln!(text, "  ({left_out} earlier acts left out)");
        }
        for line in inner.acts.iter().skip(left_out) {
            let _cannot_fail = writeln!(text, "  {line}");
        }
        text
    }

    fn line(&self, what: &str) -> String {
        format!("{:10.3}  {what}", self.clock.elapsed().as_secs_f64())
    }
}
