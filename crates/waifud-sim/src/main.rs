//! `waifud-sim`: runs seeds and reports what they found.

use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use clap::Parser;
use waifud_kit::planted_bugs::Bug;
use waifud_kit::sync::lock;
use waifud_sim::run::{Options, Outcome, run};
use waifud_sim::totals::Totals;

/// An eighth of a long run was spent in the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulate a cluster: the real control service and the real agents, with simulated time, network, power and chance
#[derive(Parser)]
#[command(disable_version_flag = true)]
struct Args {
    /// Run this seed; with --seeds, the first one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this many seeds, and stop after the first that fails
    #[arg(long)]
    seeds: Option<u64>,
    /// The number of steps of each run
    #[arg(long, default_value_t = 60)]
    steps: u64,
    /// Plant a bug that the simulation should find (debug builds only)
    #[arg(long)]
    bug: Option<Bug>,
    /// Never replace waifud's database with an older copy
    #[arg(long)]
    no_restores: bool,
    /// Print every act and message, not only the last acts of a failed run
    #[arg(long)]
    full: bool,
    /// Print the daemons' log, filtered like `RUST_LOG`
    #[arg(long)]
    log: Option<String>,
    /// Print the totals in one line for a program
    #[arg(long, hide = true)]
    totals: bool,
}

/// What the line with the totals begins with.
const TOTALS: &str = "totals ";

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.seeds {
        None => one(&args),
        Some(seeds) => many(&args, seeds),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs one seed in this process. Returns whether every invariant held.
fn one(args: &Args) -> Result<bool> {
    let outcome = run(Options {
        seed: args.seed,
        steps: args.steps,
        restores: !args.no_restores,
        bug: args.bug,
        log: args.log.clone(),
    })?;
    if args.full {
        print!("{}", outcome.full_history);
    }
    let totals = Totals::of(&outcome);
    if args.totals {
        println!("{TOTALS}{}", serde_json::to_string(&totals)?);
    }
    let Some(violation) = &outcome.violation else {
        println!("seed {}: {}", args.seed, summary(&outcome));
        if !args.totals {
            println!("{totals}");
        }
        return Ok(true);
    };
    println!("seed {} FAILED: {violation}", args.seed);
    print!("{}", outcome.history);
    println!("seed {}: {}", args.seed, summary(&outcome));
    let mut bug = args
        .bug
        .map_or_else(String::new, |bug| format!(" --bug {bug}"));
    if args.no_restores {
        bug.push_str(" -- --no-restores");
    }
    // The same number of steps: a run that ends earlier ends its faults earlier.
    println!(
        "replay: cargo xtask sim --seed {} --steps {}{bug}",
        args.seed, args.steps
    );
    Ok(false)
}

fn summary(outcome: &Outcome) -> String {
    format!(
        "{} steps on {} nodes in {} simulated seconds; {} messages; {} checks; digest {}",
        outcome.steps,
        outcome.nodes,
        outcome.lasted.as_secs(),
        outcome.messages,
        outcome.checks,
        outcome.digest
    )
}

/// Runs several seeds, each in a process of its own, and as many at once as there are processors.
fn many(args: &Args, seeds: u64) -> Result<bool> {
    let own = std::env::current_exe().context("the path of this program is unknown")?;
    let next = AtomicU64::new(args.seed);
    let end = args.seed.saturating_add(seeds);
    let failed = Mutex::new(None);
    let error = Mutex::new(None);
    let totals = Mutex::new(Totals::default());
    let stopped = || lock(&failed).is_some() || lock(&error).is_some();
    let work = || {
        while !stopped() {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= end {
                return;
            }
            let mut command = Command::new(&own);
            command.args(["--totals", "--seed", &seed.to_string()]);
            command.args(["--steps", &args.steps.to_string()]);
            if args.no_restores {
                command.arg("--no-restores");
            }
            if let Some(bug) = args.bug {
                command.args(["--bug", bug.name()]);
            }
            if args.full {
                command.arg("--full");
            }
            if let Some(filter) = &args.log {
                command.args(["--log", filter]);
            }
            match command.stdin(Stdio::null()).output() {
                Ok(output) => {
                    let printed = String::from_utf8_lossy(&output.stdout);
                    let (counted, shown) = split(&printed);
                    print!("{shown}");
                    if let Some(counted) = counted {
                        lock(&totals).add(&counted);
                    }
                    eprint!("{}", String::from_utf8_lossy(&output.stderr));
                    if !output.status.success() {
                        lock(&failed).get_or_insert((seed, output.status));
                    }
                }
                Err(cause) => {
                    lock(&error).get_or_insert(cause);
                }
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    if let Some(cause) = lock(&error).take() {
        return Err(cause).context("a run could not be started");
    }
    match lock(&failed).take() {
        None => {
            println!("{}", lock(&totals));
            println!(
                "{seeds} seeds of {} steps: every invariant held",
                args.steps
            );
            Ok(true)
        }
        Some((_, status)) if status.code() == Some(1) => Ok(false),
        Some((seed, status)) => bail!("seed {seed} ended with {status}"),
    }
}

/// The totals in the output of a run, and the rest of it.
fn split(printed: &str) -> (Option<Totals>, String) {
    let mut totals = None;
    let mut shown = String::new();
    for line in printed.lines() {
        if let Some(Ok(found)) = line.strip_prefix(TOTALS).map(serde_json::from_str) {
            totals = Some(found);
        } else {
            shown.push_str(line);
            shown.push('\n');
        }
    }
    (totals, shown)
}
