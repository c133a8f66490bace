//! `waifuctl list` of 1,000 instances as a process: from its start to its exit, including reading its output.
//!
//! `-- --instances N --rounds N` changes the numbers (1,000 and 50).

#[expect(dead_code, reason = "each bench uses a part of it")]
mod kit;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kit::{Waifud, at, number, request};

fn main() -> Result<()> {
    let (instances, rounds) = (number("--instances", 1000)?, number("--rounds", 50)?);
    let runtime = tokio::runtime::Runtime::new()?;
    let waifud = runtime.block_on(async {
        let waifud = Waifud::start()?;
        waifud.template().await?;
        waifud.nodes(3).await?;
        let client = waifud.client()?;
        for number in 0..instances {
            let name = format!("guest{number}");
            client.create_instance(&request(&name)?, &name).await?;
        }
        anyhow::Ok(waifud)
    })?;
    let program = Path::new(env!("CARGO_BIN_EXE_waifud"));
    let waifuctl = program.with_file_name("waifuctl");
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let output = Command::new(&waifuctl)
            .arg("list")
            .env("WAIFUD_SOCKET", waifud.socket())
            .output()
            .context("cannot run waifuctl; build it first")?;
        times.push(begun.elapsed());
        ensure!(output.status.success(), "{output:?}");
        let lines = output.stdout.split(|byte| *byte == b'\n');
        let guests = lines.filter(|line| line.starts_with(b"guest")).count();
        ensure!(guests == instances, "{guests} of {instances} were listed");
    }
    times.sort_unstable();
    let median = at(&times, 0.5);
    println!(
        "waifuctl list of {instances}, including process start, {rounds} rounds: min {:.1} ms  median {median:.1} ms  p99 {:.1} ms",
        at(&times, 0.0),
        at(&times, 0.99),
    );
    let verdict = if median < 30.0 { "met" } else { "missed" };
    println!("  target: under 30 ms: {verdict}");
    Ok(())
}
