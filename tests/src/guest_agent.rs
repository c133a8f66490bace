//! Commands that use the guest agent: running programs, setting passwords.

use anyhow::{Result, ensure};

use crate::running::Running;
use crate::{Guest, World};

/// waifud's limit for a program's standard output.
const STDOUT_MAX: usize = 2 << 20;
/// Used only by the guest of one test.
const PASSWORD: &str = "correct horse: battery";

/// A program gets its arguments unchanged, and its output, errors and exit code are returned.
///
/// # Errors
/// One of them differs.
pub fn runs_programs(guest: &Guest) -> Result<()> {
    runs_programs_in(guest.world, &guest.name)
}

/// As [`runs_programs`], in the instance with this name.
///
/// # Errors
/// As [`runs_programs`].
pub fn runs_programs_in(world: &World, name: &str) -> Result<()> {
    let script = "echo \"to $1\"; echo to-stderr >&2; exit 7";
    let words = [
        "exec", name, "--", "/bin/sh", "-c", script, "sh", "std  out",
    ];
    let outcome = world.waifuctl.run(&words)?;
    ensure!(
        outcome.code == 7
            && outcome.stdout == "to std  out\n"
            && outcome.stderr.contains("to-stderr\n"),
        "{outcome:?}"
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
    let outcome = world.waifuctl.run(&json)?;
    let answer: serde_json::Value = serde_json::from_str(&outcome.stdout)?;
    ensure!(
        outcome.code == 0
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
    // More than libvirt can transfer, and more than the guest agent can handle without a limit.
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

/// Sets a password and logs in with it on the serial console. For a guest that has `chpasswd` and a getty.
///
/// # Errors
/// The password is not set, or the login fails.
pub fn sets_a_password(world: &World, name: &str, user: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), format!("{PASSWORD}\n"))?;
    let path = file.path().display().to_string();
    let words = ["passwd", name, "--user", user, "--password-file", &path];
    let outcome = world.waifuctl.run(&words)?;
    ensure!(outcome.code == 0, "{outcome:?}");

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
