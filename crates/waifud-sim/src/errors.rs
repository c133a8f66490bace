//! Errors that no caller sees: what daemons log as errors, and panics of their tasks.

use std::fmt::{self, Write};
use std::sync::Mutex;

use anyhow::Result;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use waifud_kit::sync::lock;

/// Errors that belong to faults of the run: the beginnings of their messages.
const EXPECTED: &[&str] = &[
    // A restored database.
    "waifud's database has changed: nothing is destroyed",
];

/// What was logged since the last look.
static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Errors;

impl<S: Subscriber> Layer<S> for Errors {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let Text { message, fields } = text;
        if EXPECTED.iter().all(|begin| !message.starts_with(begin)) {
            let target = event.metadata().target();
            lock(&FOUND).push(format!("{target}: {message}{fields}"));
        }
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _cannot_fail = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {field}={value:?}")
        };
    }
}

/// Begins to collect errors and panics of this process. Prints the log, too, if there is a filter for it.
pub fn watch(log: Option<&str>) -> Result<()> {
    let print = log.map(|filter| {
        let print = tracing_subscriber::fmt::layer();
        let print = print.with_writer(std::io::stderr).without_time();
        print.with_filter(EnvFilter::new(filter))
    });
    let errors = Errors.with_filter(LevelFilter::ERROR);
    tracing_subscriber::registry()
        .with(errors)
        .with(print)
        .try_init()?;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        lock(&FOUND).push(format!("a task panicked: {panic}"));
        usual(panic);
    }));
    Ok(())
}

/// The first error since the last call.
pub fn take() -> Option<String> {
    let found = std::mem::take(&mut *lock(&FOUND));
    found.into_iter().next()
}
