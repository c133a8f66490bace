//! Logs plain lines to stderr, without a time, which journald and supervisors add.

use std::io::{IsTerminal, stderr};

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

/// Starts logging with a level or directives.
pub fn start(directives: &str) -> Result<()> {
    let filter = EnvFilter::try_new(directives).with_context(|| {
        format!("log = {directives:?} is neither a log level nor a valid tracing directive")
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .without_time();
    lines
        .try_init()
        .map_err(|error| anyhow::anyhow!("logging could not be started: {error}"))
}
