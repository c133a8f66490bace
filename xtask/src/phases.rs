//! A long command as a sequence of phases, with a line for each start and a table at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

enum Outcome {
    Done,
    Failed(String),
    Skipped(&'static str),
}

/// The phases that ran, with their results.
#[derive(Default)]
pub struct Phases {
    list: Vec<(&'static str, Duration, Outcome)>,
    failed: bool,
}

impl Phases {
    /// Runs one phase, or skips it after an earlier failure.
    pub fn run(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        if self.failed {
            self.list.push((
                name,
                Duration::ZERO,
                Outcome::Skipped("an earlier phase failed"),
            ));
        } else {
            self.always(name, work);
        }
    }

    /// Runs one phase, even after an earlier failure.
    pub fn always(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        eprintln!("== {name}");
        let start = Instant::now();
        let outcome = match work() {
            Ok(()) => Outcome::Done,
            Err(error) => {
                self.failed = true;
                Outcome::Failed(format!("{error:#}"))
            }
        };
        let time = start.elapsed();
        if let Outcome::Failed(error) = &outcome {
            eprintln!("error: {error}");
        }
        eprintln!("== {name}: {:.1} s", time.as_secs_f64());
        self.list.push((name, time, outcome));
    }

    /// Prints the table.
    ///
    /// # Errors
    /// A phase failed.
    pub fn finish(self) -> Result<()> {
        eprintln!("\n{:<26} {:>8}  RESULT", "PHASE", "SECONDS");
        let mut failed = Vec::new();
        for (name, time, outcome) in &self.list {
            let result = match outcome {
                Outcome::Done => "ok",
                Outcome::Failed(_) => {
                    failed.push(*name);
                    "FAILED"
                }
                Outcome::Skipped(reason) => reason,
            };
            eprintln!("{name:<26} {:>8.1}  {result}", time.as_secs_f64());
        }
        let total: Duration = self.list.iter().map(|(_, time, _)| *time).sum();
        eprintln!("{:<26} {:>8.1}", "total", total.as_secs_f64());
        if failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", failed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_skips_later_phases_and_is_reported_at_the_end() {
        let mut phases = Phases::default();
        let mut ran = Vec::new();
        phases.run("one", || bail!("broken"));
        phases.run("two", || {
            ran.push("two");
            Ok(())
        });
        phases.always("three", || {
            ran.push("three");
            Ok(())
        });
        let error = phases.finish().unwrap_err().to_string();
        assert_eq!((error.as_str(), ran), ("failed: one", vec!["three"]));
    }
}
