//! The complete demo, as a new user runs it, with a real Debian.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::{testing, wait};

#[test]
fn the_demo_verifies_the_guest_and_leaves_nothing_behind() -> Result<()> {
    if let Some(why) = testing::why_no_lab() {
        return testing::skip(&why);
    }
    let xtask = testing::init_exe()?;
    let links = || {
        wait::run(
            std::process::Command::new("ip").args(["-o", "link"]),
            Duration::from_secs(10),
        )
    };
    let before = links()?;
    let mut demo = std::process::Command::new(&xtask);
    demo.args(["demo", "--once", "--prepared"]);
    let output = wait::output(&mut demo, Duration::from_mins(20))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the demo failed: {stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let last = stdout.lines().last().context("standard output is empty")?;
    let report: Value = serde_json::from_str(last)?;
    ensure!(report["cloud_init"] == "done", "{report}");
    ensure!(
        report["datasource"]
            .as_str()
            .is_some_and(|d| d.contains("OpenStack")),
        "{report}"
    );
    for time in ["image", "accepted", "running", "ready"] {
        ensure!(
            report["seconds"][time].is_f64(),
            "{time} is missing in {report}"
        );
    }
    eprintln!("{report}");
    ensure!(links()? == before, "the demo left an interface");
    Ok(())
}
