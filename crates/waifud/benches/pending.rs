//! A pass over instances that wait for a node: its time and processor time, and how waifud answers meanwhile.
//!
//! No node has the memory for any of them. They are in classes with different requirements, of which each pass evaluates one
//! instance. First, waifud has nothing else to do; then, reads, creates and deletions arrive at a constant rate, without passes
//! and with one pass after another. At last, what all of them wait for changes.
//! `-- --pending N --classes N --rate N --seconds N` changes the numbers.

#[expect(dead_code, reason = "each bench uses a part of it")]
mod kit;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use kit::{Waifud, at, number, request};
use tokio::task::JoinSet;
use waifud_api::client::Client;
use waifud_api::{CreateInstance, UpdateNode};
use waifud_types::ByteSize;

const CLIENTS: usize = 64;
const PASSES: usize = 5;
const PASS_LIMIT: Duration = Duration::from_mins(10);

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<()> {
    let (pending, classes) = (
        number("--pending", 100_000)?,
        number("--classes", 100)?.max(1),
    );
    let (rate, seconds) = (number("--rate", 100)?, number("--seconds", 15)?);
    let waifud = Waifud::start_with("log = 'info,waifud_control::placement=debug'\n")?;
    waifud.template().await?;
    let _received = waifud.nodes(1).await?;
    let client = waifud.client()?;
    let (before, _) = waifud.memory()?;
    stream::iter(0..pending)
        .map(|number| create(&client, number, number % classes))
        .buffer_unordered(CLIENTS)
        .try_collect::<()>()
        .await?;
    let (after, peak) = waifud.memory()?;
    println!("{pending} instances in {classes} classes wait for a node");
    println!(
        "  memory of waifud: {before} MiB before they were created, {after} MiB after, {peak} MiB at its peak"
    );

    let mut passes = Passes {
        waifud: &waifud,
        client: &client,
        pending,
        begun: 0,
    };
    let (mut times, mut cpu) = (Vec::new(), Duration::ZERO);
    for _ in 0..PASSES {
        let begun = waifud.cpu()?;
        times.push(passes.one(label).await?);
        cpu += waifud.cpu()?.saturating_sub(begun);
    }
    times.sort_unstable();
    println!(
        "  a pass after a change of a node: median {:.0} ms, longest {:.0} ms; {:.0} ms of processor time each",
        at(&times, 0.5),
        at(&times, 1.0),
        cpu.as_secs_f64() * 1000.0 / f64::from(u32::try_from(PASSES)?),
    );

    let seconds = Duration::from_secs(u64::try_from(seconds)?);
    print(
        "without passes",
        &load(&client, rate, seconds, pending, "calm", 0).await?,
    );
    let deleted = pending / 20;
    let loaded = load(&client, rate, seconds, pending, "busy", deleted);
    let mut loaded = std::pin::pin!(loaded);
    let mut count = 0;
    let answers = loop {
        tokio::select! {
            answers = &mut loaded => break answers?,
            pass = passes.one(label) => {
                pass?;
                count += 1;
            }
        }
    };
    print(&format!("during {count} passes"), &answers);

    let begun = waifud.cpu()?;
    let took = passes.one(cordon).await?;
    let cpu = waifud.cpu()?.saturating_sub(begun);
    println!(
        "  a pass that changes what all of them wait for: {:.1} s; {:.1} s of processor time",
        took.as_secs_f64(),
        cpu.as_secs_f64()
    );
    println!("  memory of waifud at its peak: {} MiB", waifud.memory()?.1);
    Ok(())
}

/// Creates an instance with more memory than the node has.
async fn create(client: &Client, number: usize, class: usize) -> Result<()> {
    let name = format!("waits{number}");
    let memory = ByteSize::gib(2048 + u64::try_from(class)?);
    let wanted = CreateInstance {
        memory_bytes: Some(memory),
        ..request(&name)?
    };
    let made = client.create_instance(&wanted, &name).await?;
    ensure!(made.status.node.is_none(), "{name} was placed");
    Ok(())
}

/// Makes waifud try the waiting instances again, without any effect on them.
fn label(number: usize) -> UpdateNode {
    UpdateNode {
        labels: [("bench".to_owned(), Some(number.to_string()))].into(),
        ..UpdateNode::default()
    }
}

fn cordon(_: usize) -> UpdateNode {
    UpdateNode {
        cordoned: Some(true),
        ..UpdateNode::default()
    }
}

struct Passes<'a> {
    waifud: &'a Waifud,
    client: &'a Client,
    pending: usize,
    begun: usize,
}

impl Passes<'_> {
    /// Changes the node, and returns the time until a pass that began afterwards has ended.
    async fn one(&mut self, change: fn(usize) -> UpdateNode) -> Result<Duration> {
        let before = self.ended()?;
        self.begun += 1;
        let begun = Instant::now();
        self.client
            .update_node("node0", &change(self.begun))
            .await?;
        while self.ended()? == before {
            ensure!(begun.elapsed() < PASS_LIMIT, "no pass has ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(begun.elapsed())
    }

    /// How many passes over all instances have ended.
    fn ended(&self) -> Result<usize> {
        let log = self.waifud.log()?;
        let passes = log.lines().filter_map(|line| {
            let (_, seen) = line.split_once("tried waiting instances again seen=")?;
            seen.split(' ').next()?.parse::<usize>().ok()
        });
        // The load deletes some.
        Ok(passes.filter(|seen| seen * 10 >= self.pending * 9).count())
    }
}

/// The requests of a load, in turn.
const KINDS: [&str; 4] = ["reads", "creates", "reads", "deletions"];

/// Makes requests at a constant rate. Returns their sorted times by kind, measured from when they were due.
async fn load(
    client: &Client,
    rate: usize,
    time: Duration,
    pending: usize,
    prefix: &str,
    first: usize,
) -> Result<BTreeMap<&'static str, Vec<Duration>>> {
    let between = Duration::from_secs(1) / u32::try_from(rate.max(1))?;
    let begun = Instant::now();
    let mut asked = JoinSet::new();
    for (number, kind) in (0_u32..).zip(KINDS.into_iter().cycle()) {
        let due = begun + between * number;
        if due >= begun + time {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let (client, name) = (client.clone(), format!("{prefix}{number}"));
        let at = usize::try_from(number)?;
        // Not one that is deleted: those are the first ones, in either load.
        let read = format!("waits{}", pending - 1 - at % (pending / 2));
        let deleted = format!("waits{}", first + at);
        asked.spawn(async move {
            match kind {
                "creates" => drop(client.create_instance(&request(&name)?, &name).await?),
                "deletions" => drop(client.delete_instance(&deleted, Duration::ZERO).await?),
                _ => drop(client.instance(&read).await?),
            }
            anyhow::Ok((kind, due.elapsed()))
        });
    }
    let mut times: BTreeMap<_, Vec<_>> = BTreeMap::new();
    while let Some(answer) = asked.join_next().await {
        let (kind, time) = answer.context("a request panicked")??;
        times.entry(kind).or_default().push(time);
    }
    for times in times.values_mut() {
        times.sort_unstable();
    }
    Ok(times)
}

fn print(when: &str, times: &BTreeMap<&str, Vec<Duration>>) {
    for (kind, times) in times {
        println!(
            "  {kind} {when}: median {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
            at(times, 0.5),
            at(times, 0.99),
            at(times, 1.0)
        );
    }
}
