//! Runs test programs and other jobs side by side, and reports their results.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use waifud_lab::wait;

use super::output::{self, Summary};
use super::programs::Program;
use super::queues::{self, Limits, Queues};
use super::slowest;
use crate::{cargo, root};

/// The package whose tests boot guests. Its programs run their tests one after the other.
pub const GUESTS: &str = "waifud-tests";
/// No suite may take longer. The longest takes five minutes.
const LIMIT: Duration = Duration::from_mins(40);
/// How long a suite that passed its limit may take to end after a signal.
const GRACE: Duration = Duration::from_secs(30);
/// How often the jobs that are still running are listed.
const REMINDER: Duration = Duration::from_mins(1);
/// How many suites the table has.
const LONGEST_SUITES: usize = 15;
/// Lets libtest print how long each test took. The option is not stable yet, so test programs (neither cargo nor rustc)
/// get the variable that allows it; where a toolchain refuses both, there are no times.
const REPORT_TIME: [&str; 2] = ["-Zunstable-options", "--report-time"];
const ALLOW_UNSTABLE: &str = "RUSTC_BOOTSTRAP";
/// The memory that a guest suite needs, for its guests and daemons.
const MEMORY_OF_A_GUEST_SUITE: u64 = 3 << 30;

/// Suites that took long, with their seconds, for a machine on which none has run yet.
const FIRST: &[(&str, f64)] = &[
    ("waifud-tests::install", 300.0),
    ("waifud-tests::demo", 150.0),
    ("waifud-tests::restarts", 100.0),
    ("waifud-tests::life", 90.0),
    ("waifud-images::tiny", 80.0),
];

/// A job that is not a test program, for example a lint. It runs at the lowest priority beside the tests.
pub type Other<'a> = (&'static str, Box<dyn FnOnce() -> Result<()> + Send + 'a>);

enum Work<'a> {
    Tests(&'a Program),
    Other(Other<'a>),
}

/// The result of one job.
struct Finished {
    name: String,
    time: Duration,
    error: Option<String>,
    summary: Summary,
}

/// Runs everything, prints a line for each job as it ends, the output of those that fail, and the tables.
///
/// # Errors
/// A job failed; the others were run nevertheless.
pub fn run(programs: &[Program], background: Vec<Other<'_>>) -> Result<()> {
    run_in(&cargo::target(), programs, background)
}

fn run_in(target: &Path, programs: &[Program], background: Vec<Other<'_>>) -> Result<()> {
    let runner = Runner::new(target, programs)?;
    let expected = read_times(&runner.times);
    let seconds = |name: &str| {
        let first = FIRST.iter().find(|(first, _)| *first == name);
        let known = expected.get(name).copied();
        known.or(first.map(|(_, seconds)| *seconds)).unwrap_or(0.0)
    };
    let (mut guests, mut tests): (Vec<&Program>, Vec<&Program>) = programs
        .iter()
        .partition(|program| boots_guests(program, processors()));
    // Longest first, so that no long suite is left for the end.
    for list in [&mut guests, &mut tests] {
        list.sort_by(|one, other| seconds(&other.name()).total_cmp(&seconds(&one.name())));
    }
    let processors = processors();
    let queues = Queues::new(
        guests.into_iter().map(Work::Tests),
        tests.into_iter().map(Work::Tests),
        background.into_iter().map(Work::Other),
        Limits::new(processors, guests_at_once(memory())),
    );
    let workers = queues::workers(processors);
    let (working, all_ended) = channel();
    thread::scope(|scope| {
        for &preferred in workers {
            let (queues, runner, working) = (&queues, &runner, working.clone());
            scope.spawn(move || {
                let _until_the_end = working;
                let mut panicked = None;
                while let Some(taken) = queues.take(preferred) {
                    // A panic must not leave the other workers waiting, nor jobs that only this worker takes; the scope
                    // reports it at the end.
                    let run = catch_unwind(AssertUnwindSafe(|| runner.run(taken.job)));
                    queues.done(taken.kind);
                    panicked = run.err().or(panicked);
                }
                if let Some(panic) = panicked {
                    resume_unwind(panic);
                }
            });
        }
        drop(working);
        runner.remind(&all_ended);
    });
    runner.finish()
}

/// Whether a program belongs to the guest suites: those of [`GUESTS`], and the one that boots the tiny guest without
/// waifud, one guest at a time. That one also builds the guest, and mmdebstrap mounts file systems on this machine
/// meanwhile. So where tests that compare the machine's mounts run beside guest suites, it is one of the other tests.
fn boots_guests(program: &Program, processors: usize) -> bool {
    let rest_alone = Limits::new(processors, 1).rest_alone;
    program.package == GUESTS || (rest_alone && program.name() == "waifud-images::tiny")
}

/// Two guest suites at most, and only where there is memory for both.
fn guests_at_once(memory: u64) -> usize {
    if memory >= 2 * MEMORY_OF_A_GUEST_SUITE {
        2
    } else {
        1
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of memory that this machine has; 0 when that is unknown.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib << 10)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Runner {
    /// Where the output of each suite goes.
    logs: PathBuf,
    /// How long each suite took when it ran last.
    times: PathBuf,
    /// Whether libtest reports the time of each test.
    report_time: bool,
    running: Mutex<BTreeMap<String, Instant>>,
    finished: Mutex<Vec<Finished>>,
}

impl Runner {
    fn new(target: &Path, programs: &[Program]) -> Result<Self> {
        let logs = target.join("test-logs");
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(Self {
            times: target.join("test-times.json"),
            logs,
            report_time: programs.first().is_some_and(reports_time),
            running: Mutex::default(),
            finished: Mutex::default(),
        })
    }

    fn run(&self, work: Work<'_>) {
        let name = match &work {
            Work::Tests(program) => program.name(),
            Work::Other((name, _)) => (*name).to_owned(),
        };
        let begun = Instant::now();
        lock(&self.running).insert(name.clone(), begun);
        let log = self
            .logs
            .join(name.replace("::", "-"))
            .with_extension("log");
        let (result, summary) = match work {
            Work::Other((_, work)) => {
                let result = catch_unwind(AssertUnwindSafe(work));
                let result = result.unwrap_or_else(|_| Err(anyhow!("it panicked")));
                (result, Summary::default())
            }
            Work::Tests(program) => {
                let result = self.tests(program, &log, &[]);
                let text = std::fs::read(&log).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                if result.is_err() {
                    eprintln!("---- {name}\n{text}----");
                }
                (result, output::parse(&text))
            }
        };
        let time = begun.elapsed();
        let error = result.err().map(|error| format!("{error:#}"));
        for line in &summary.skipped {
            eprintln!("  {name}: {line}");
        }
        match &error {
            None if summary.passed > 0 => eprintln!(
                "== {name}: {:.1} s, {} tests passed",
                time.as_secs_f64(),
                summary.passed
            ),
            None => eprintln!("== {name}: {:.1} s", time.as_secs_f64()),
            Some(error) => eprintln!(
                "== {name}: FAILED after {:.1} s: {error}",
                time.as_secs_f64()
            ),
        }
        lock(&self.running).remove(&name);
        lock(&self.finished).push(Finished {
            name,
            time,
            error,
            summary,
        });
    }

    /// Runs one test program as `cargo test` would; its output goes to `log`.
    fn tests(&self, program: &Program, log: &Path, arguments: &[&str]) -> Result<()> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = root::program(&program.path);
        command
            .current_dir(&program.directory)
            .env("CARGO_MANIFEST_DIR", &program.directory)
            .env("CARGO_PKG_NAME", &program.package)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .args(arguments);
        if program.package == GUESTS {
            command.arg("--test-threads=1");
        }
        if self.report_time {
            command.args(REPORT_TIME).env(ALLOW_UNSTABLE, "1");
        }
        super::no_skips(&mut command);
        let mut child = command.spawn().context("cannot start it")?;
        let status = wait::until("its end", LIMIT, || Ok(child.try_wait()?));
        if status.is_err() {
            end(&mut child)?;
        }
        let status = status?;
        ensure!(status.success(), "it ended with {status}");
        // A test that ends the whole process with 0 would hide all tests after it.
        let text = std::fs::read(log)?;
        ensure!(
            String::from_utf8_lossy(&text).contains("test result: ok"),
            "it ended without the result of its tests"
        );
        Ok(())
    }

    /// Lists the running jobs now and then, until all workers have dropped their end of the channel.
    fn remind(&self, working: &Receiver<()>) {
        while let Err(RecvTimeoutError::Timeout) = working.recv_timeout(REMINDER) {
            let jobs: Vec<_> = lock(&self.running)
                .iter()
                .map(|(name, since)| format!("{name} ({} s)", since.elapsed().as_secs()))
                .collect();
            eprintln!("   running: {}", jobs.join(", "));
        }
    }

    fn finish(self) -> Result<()> {
        let mut finished = self
            .finished
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        finished.sort_by_key(|job| Reverse(job.time));
        if let Err(error) = write_times(&self.times, &finished) {
            eprintln!("warning: cannot store the times of this run for the next one: {error:#}");
        }
        let tests = finished.iter().flat_map(|job| {
            let name = job.name.as_str();
            job.summary.timed.iter().map(move |test| (name, test))
        });
        let table = slowest::table(tests);
        eprint!("\n{}", suites_table(&finished));
        eprint!("\n{table}");
        if table.is_empty() {
            eprintln!("This toolchain's libtest does not report the time of each test.");
        }
        let failed: Vec<_> = finished
            .iter()
            .filter(|job| job.error.is_some())
            .map(|job| job.name.as_str())
            .collect();
        ensure!(failed.is_empty(), "{}", failed.join(", "));
        Ok(())
    }
}

/// Ends a suite that passed its limit. It may run as root through sudo, which passes SIGTERM on to it.
fn end(child: &mut Child) -> Result<()> {
    let pid = child.id().to_string();
    for signal in ["-TERM", "-KILL"] {
        let mut kill = root::program(Path::new("/bin/kill"));
        let _ended_already = kill.args([signal, &pid]).status()?;
        let ended = wait::until("its end", GRACE, || Ok(child.try_wait()?));
        if ended.is_ok() {
            break;
        }
    }
    Ok(())
}

/// The longest jobs, and the number of all tests.
fn suites_table(finished: &[Finished]) -> String {
    let mut text = format!("{:>8}  {:>6}  SUITE\n", "SECONDS", "TESTS");
    for job in finished.iter().take(LONGEST_SUITES) {
        let count = job.summary.passed + job.summary.failed;
        let _ = writeln!(
            text,
            "{:>8.1}  {count:>6}  {}",
            job.time.as_secs_f64(),
            job.name
        );
    }
    let sum = |count: fn(&Summary) -> usize| -> usize {
        finished.iter().map(|job| count(&job.summary)).sum()
    };
    let _ = writeln!(
        text,
        "{} suites: {} tests passed, {} failed, {} ignored, {} skipped",
        finished.len(),
        sum(|summary| summary.passed),
        sum(|summary| summary.failed),
        sum(|summary| summary.ignored),
        sum(|summary| summary.skipped.len())
    );
    text
}

/// The seconds that each suite took when it ran last; none where that is unknown.
fn read_times(path: &Path) -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Keeps the times of suites that did not run this time.
fn write_times(path: &Path, finished: &[Finished]) -> Result<()> {
    let mut times = read_times(path);
    for job in finished.iter().filter(|job| job.error.is_none()) {
        times.insert(job.name.clone(), job.time.as_secs_f64());
    }
    let text = serde_json::to_string_pretty(&times)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Whether libtest accepts [`REPORT_TIME`] here.
fn reports_time(program: &Program) -> bool {
    let mut command = root::program(&program.path);
    command.arg("--list").args(REPORT_TIME);
    let output = wait::output(command.env(ALLOW_UNSTABLE, "1"), Duration::from_mins(1));
    output.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_guest_suites_run_at_once_only_where_there_is_memory_for_them() {
        for (gib, expected) in [(0, 1), (4, 1), (6, 2), (256, 2)] {
            assert_eq!(guests_at_once(gib << 30), expected);
        }
    }

    #[test]
    fn the_program_that_builds_the_tiny_guest_never_runs_beside_tests_that_compare_mounts() {
        let program = |package: &str, target: &str| Program {
            package: package.to_owned(),
            kind: "test".to_owned(),
            target: target.to_owned(),
            path: PathBuf::new(),
            directory: PathBuf::new(),
        };
        let tiny = program("waifud-images", "tiny");
        assert!(boots_guests(&tiny, 2));
        assert!(!boots_guests(&tiny, 4));
        for processors in [2, 4] {
            assert!(boots_guests(&program(GUESTS, "life"), processors));
            assert!(!boots_guests(&program("waifud-lab", "lab"), processors));
        }
    }

    #[test]
    fn times_are_kept_for_the_next_run_and_damaged_ones_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("times.json");
        let job = |name: &str, seconds, error: Option<&str>| Finished {
            name: name.to_owned(),
            time: Duration::from_secs(seconds),
            error: error.map(str::to_owned),
            summary: Summary::default(),
        };
        std::fs::write(&path, "{ not JSON").unwrap();
        write_times(&path, &[job("one", 3, None), job("two", 5, None)]).unwrap();
        write_times(&path, &[job("one", 4, None), job("two", 1, Some("failed"))]).unwrap();
        let times = read_times(&path);
        assert_eq!(times.get("one"), Some(&4.0));
        assert_eq!(times.get("two"), Some(&5.0));
    }

    fn other(name: &'static str, result: Result<()>) -> Other<'static> {
        (name, Box::new(move || result))
    }

    #[test]
    fn every_job_runs_and_those_that_failed_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let ran = std::sync::atomic::AtomicUsize::new(0);
        let last: Other<'_> = (
            "last",
            Box::new(|| {
                ran.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(())
            }),
        );
        let background = vec![other("bad", Err(anyhow::anyhow!("broken"))), last];
        let error = run_in(dir.path(), &[], background).unwrap_err().to_string();
        assert_eq!(error, "bad");
        assert_eq!(ran.into_inner(), 1);
    }

    #[test]
    fn a_test_program_is_run_and_its_tests_are_timed() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let program = Program {
            package: "xtask".to_owned(),
            kind: "test".to_owned(),
            target: "again".to_owned(),
            path: own,
            directory: dir.path().to_owned(),
        };
        let runner = Runner::new(dir.path(), std::slice::from_ref(&program)).unwrap();
        let log = dir.path().join("log");
        runner
            .tests(&program, &log, &["two_guest_suites_run_at_once"])
            .unwrap();
        let summary = output::parse(&std::fs::read_to_string(&log).unwrap());
        assert_eq!((summary.passed, summary.failed), (1, 0));
        assert_eq!(summary.timed.len(), usize::from(runner.report_time));
    }
}
