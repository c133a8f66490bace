//! Creates acknowledged per second by waifud alone, with full durability, while 256 simulated nodes watch.
//!
//! Two loads over the local socket, one after the other: 64 clients that each send the next request after an answer (the
//! throughput), and one create per millisecond independent of the answers (the latency, measured from the scheduled time).
//! Every node reads its watch. The load and the nodes share the cores with waifud.
//! At last, waifud is started again with all of them. `-- --nodes N --creates N --rate N` changes the numbers.

#[expect(dead_code, reason = "each bench uses a part of it")]
mod kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kit::{Waifud, at, number, request};
use tokio::task::JoinSet;
use waifud_api::client::Client;

const CLIENTS: usize = 64;
const RECEIVE_LIMIT: Duration = Duration::from_mins(10);

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<()> {
    let (nodes, creates, rate) = (
        number("--nodes", 256)?,
        number("--creates", 5000)?,
        number("--rate", 1000)?,
    );
    let mut waifud = Waifud::start()?;
    waifud.template().await?;
    let received = waifud.nodes(nodes).await?;
    let client = waifud.client()?;
    println!("creates acknowledged by waifud alone, {nodes} nodes, {creates} creates each way");

    let begun = Instant::now();
    let (times, failed) = throughput(&client, creates).await?;
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let per_second = times.len() as f64 / begun.elapsed().as_secs_f64();
    print("64 clients", &times, failed);
    println!(
        "  {per_second:.0}/s; target: 4,000/s: {}",
        verdict(per_second >= 4000.0 && failed == 0)
    );

    let (times, failed) = at_a_rate(&client, creates, rate).await?;
    print(&format!("{rate}/s"), &times, failed);
    let met = at(&times, 0.5) < 2.0 && at(&times, 0.99) < 20.0 && failed == 0;
    println!(
        "  target at 1,000/s: median under 2 ms, p99 under 20 ms, no failures: {}",
        verdict(met)
    );

    let begun = Instant::now();
    // Each node's own object, and every instance once; duplicates do no harm.
    let all = nodes + 2 * creates;
    while received.load(Ordering::Relaxed) < all {
        ensure!(
            begun.elapsed() < RECEIVE_LIMIT,
            "the nodes received {received:?} of {all} objects"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!(
        "  all nodes had received their objects {:.1} s later",
        begun.elapsed().as_secs_f64()
    );
    let (memory, peak) = waifud.memory()?;
    println!("  memory of waifud: {memory} MiB, {peak} MiB at its peak");
    let restarted = waifud.restart().await?;
    println!(
        "  restart with {} instances: {:.0} ms to the first answer; target: under 1,000 ms: {}",
        2 * creates,
        restarted.as_secs_f64() * 1000.0,
        verdict(restarted < Duration::from_secs(1))
    );
    let (memory, peak) = waifud.memory()?;
    println!("  memory of waifud afterwards: {memory} MiB, {peak} MiB at its peak");
    Ok(())
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

fn print(load: &str, sorted: &[Duration], failed: usize) {
    println!(
        "  {load:<10} min {:>7.2} ms  median {:>7.2} ms  p99 {:>7.2} ms  max {:>7.2} ms  failed {failed}",
        at(sorted, 0.0),
        at(sorted, 0.5),
        at(sorted, 0.99),
        at(sorted, 1.0),
    );
}

async fn throughput(client: &Client, creates: usize) -> Result<(Vec<Duration>, usize)> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, next) = (client.clone(), Arc::clone(&next));
        clients.spawn(async move {
            let (mut times, mut failed) = (Vec::new(), 0);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= creates {
                    return anyhow::Ok((times, failed));
                }
                let begun = Instant::now();
                match create(&client, &format!("fast{number}")).await {
                    Ok(()) => times.push(begun.elapsed()),
                    Err(_) => failed += 1,
                }
            }
        });
    }
    let (mut all, mut failures) = (Vec::new(), 0);
    while let Some(asker) = clients.join_next().await {
        let (times, failed) = asker??;
        all.extend(times);
        failures += failed;
    }
    all.sort_unstable();
    Ok((all, failures))
}

async fn at_a_rate(client: &Client, creates: usize, rate: usize) -> Result<(Vec<Duration>, usize)> {
    let between = Duration::from_secs(1) / u32::try_from(rate)?;
    let begun = Instant::now();
    let mut asked = JoinSet::new();
    for number in 0..creates {
        let due = begun + between * u32::try_from(number)?;
        tokio::time::sleep_until(due.into()).await;
        let client = client.clone();
        asked.spawn(async move {
            let done = create(&client, &format!("due{number}")).await;
            (due.elapsed(), done)
        });
    }
    let (mut times, mut failed) = (Vec::new(), 0);
    while let Some(answer) = asked.join_next().await {
        match answer? {
            (time, Ok(())) => times.push(time),
            (_, Err(error)) => {
                eprintln!("{error:#}");
                failed += 1;
            }
        }
    }
    times.sort_unstable();
    Ok((times, failed))
}

async fn create(client: &Client, name: &str) -> Result<()> {
    let made = client.create_instance(&request(name)?, name).await?;
    ensure!(made.status.node.is_some(), "{} was not placed", made.name);
    Ok(())
}
