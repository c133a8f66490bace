//! A long command as a row of phases: one line each as it begins, and a table at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

enum Outcome {
    Done,
    Failed(String),
    Skipped(&'static str),
}

/// What was run, and how it went.
#[derive(Default)]
pub struct Phases {
    list: Vec<(&'static str, Duration, Outcome)>,
    failed: bool,
}

impl Phases {
    /// Runs one phase. After a failure the phases that follow are skipped, unless they are [`Phases::always`].
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

    /// Runs one phase whatever happened before.
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
        if let Outcome::Failed(why) = &outcome {
            eprintln!("error: {why}");
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
                Outcome::Skipped(why) => why,
            };
            eprintln!("{name:<26} {:>8.1}  {result}", time.as_secs_f64());
        }
        let whole: Duration = self.list.iter().map(|(_, time, _)| *time).sum();
        eprintln!("{:<26} {:>8.1}", "all", whole.as_secs_f64());
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
    fn a_failure_skips_what_follows_and_is_named_at_the_end() {
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
