//! What the agent in a guest does for its owner: programs are run, passwords are set.

use anyhow::{Result, ensure};

use crate::running::Running;
use crate::{Guest, World};

/// What waifud keeps of a program's standard output.
const STDOUT_MAX: usize = 2 << 20;
/// No secret: it lives as long as the guest of one test.
const PASSWORD: &str = "correct horse: battery";

/// A program's output, errors and exit code come through, and its words reach it unchanged.
///
/// # Errors
/// One of them does not.
pub fn runs_programs(guest: &Guest) -> Result<()> {
    runs_programs_in(guest.world, &guest.name)
}

/// The same, in an instance of that name.
///
/// # Errors
/// As there.
pub fn runs_programs_in(world: &World, name: &str) -> Result<()> {
    let script = "echo \"to $1\"; echo to-stderr >&2; exit 7";
    let words = [
        "exec", name, "--", "/bin/sh", "-c", script, "sh", "std  out",
    ];
    let said = world.waifuctl.run(&words)?;
    ensure!(
        said.code == 7 && said.stdout == "to std  out\n" && said.stderr.contains("to-stderr\n"),
        "{said:?}"
    );
    let json = [
        "exec",
        name,
        "--json",
        "--",
        "/bin/sh",
        "-c",
        "printf hello",
    ];
    let said = world.waifuctl.run(&json)?;
    let answer: serde_json::Value = serde_json::from_str(&said.stdout)?;
    ensure!(
        said.code == 0
            && answer["exit_code"] == 0
            && answer["stdout_base64"] == "aGVsbG8="
            && answer["truncated"] == false,
        "{answer}"
    );
    let unknown = world
        .waifuctl
        .run(&["exec", name, "--", "/no/such/program"])?;
    ensure!(
        unknown.code == 127 && unknown.stderr.contains("/no/such/program"),
        "{unknown:?}"
    );
    // More than libvirt carries, and than the guest agent survives without a limit.
    let script = "head -c 12000000 /dev/zero; exit 9";
    let flood = world
        .waifuctl
        .run(&["exec", name, "--", "/bin/sh", "-c", script])?;
    ensure!(
        flood.code == 9 && flood.stdout.len() == STDOUT_MAX,
        "{} bytes, {}",
        flood.stdout.len(),
        flood.code
    );
    let after = world.waifuctl.run(&["exec", name, "--", "true"])?;
    ensure!(after.code == 0, "{after:?}");
    Ok(())
}

/// A password is set, and its user logs in with it on the serial console. For a guest that has `chpasswd` and a getty.
///
/// # Errors
/// It is not set, or lets nobody in.
pub fn sets_a_password(world: &World, name: &str, user: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), format!("{PASSWORD}\n"))?;
    let path = file.path().display().to_string();
    let words = ["passwd", name, "--user", user, "--password-file", &path];
    let said = world.waifuctl.run(&words)?;
    ensure!(said.code == 0, "{said:?}");

    let mut console = Running::at_a_terminal(&world.waifuctl, &["console", name])?;
    console.types(b"\r")?;
    console.wait_for("login: ")?;
    console.types(format!("{user}\r").as_bytes())?;
    console.wait_for("Password: ")?;
    console.types(format!("{PASSWORD}\r").as_bytes())?;
    console.wait_for(&format!("{user}@{name}"))?;
    console.types(b"echo \"inside: $((40 + 2))\"\r")?;
    let shown = console.wait_for("inside: 42")?;
    ensure!(!shown.contains(PASSWORD), "the password is shown");
    console.types(b"exit\r")?;
    console.types(b"\x1d")?;
    console.ends_with(0)
}
