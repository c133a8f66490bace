//! The package under test, and a newer one that differs in its version only.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use waifud_lab::{testing, wait};

/// Limit of each tool. lintian takes half a minute, and much longer on a busy machine.
const LIMIT: Duration = Duration::from_mins(10);
/// Sizes of the file header and of a member's header; see `ar(5)`.
const MAGIC: usize = 8;
const HEADER: usize = 60;

/// Packs the built programs with `cargo xtask package`.
///
/// # Errors
/// The command fails.
pub fn package(dir: &Path, version: &str) -> Result<PathBuf> {
    let xtask = testing::init_exe()?;
    let programs = xtask.parent().context("xtask has no directory")?;
    let mut command = Command::new(&xtask);
    command.args(["package", "--dev", "--version", version, "--bin-dir"]);
    command.arg(programs).arg("--out").arg(dir);
    let output = wait::run(&mut command, LIMIT)?;
    let deb = output
        .lines()
        .next()
        .context("the command printed no path")?;
    Ok(PathBuf::from(deb))
}

/// Checks the package with lintian.
///
/// # Errors
/// lintian finds errors or warnings, which are in the error.
pub fn is_clean(deb: &Path) -> Result<()> {
    let mut command = Command::new("lintian");
    command.args(["--allow-root", "--no-cfg", "--fail-on", "error,warning"]);
    let output = wait::output(command.arg(deb), LIMIT)?;
    let found = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "lintian found:\n{found}");
    Ok(())
}

/// The part of a package with another version that precedes its files. The files are the same, so they are not packed
/// and copied twice.
pub struct Newer {
    /// The file with that part.
    pub head: PathBuf,
    /// The offset of the files in the first package, counted from 1 as in `tail -c`.
    pub rest_from: usize,
}

/// Creates a package like `deb` with another version.
///
/// # Errors
/// `deb` is not a package.
pub fn newer(deb: &Path, version: &str) -> Result<Newer> {
    let dir = deb.with_extension("newer");
    let inside = dir.join("DEBIAN");
    std::fs::create_dir(&dir)?;
    let tool = |words: &[&str], paths: [&Path; 2]| {
        let mut command = Command::new("dpkg-deb");
        wait::run(command.args(words).args(paths), LIMIT)
    };
    tool(&["--control"], [deb, &inside])?;
    let control = inside.join("control");
    let text = std::fs::read_to_string(&control)?;
    let line = text
        .lines()
        .find(|line| line.starts_with("Version:"))
        .context("the control file has no version")?;
    std::fs::write(&control, text.replace(line, &format!("Version: {version}")))?;
    let head = deb.with_file_name("newer.head");
    tool(&["--root-owner-group", "-Zgzip", "--build"], [&dir, &head])?;
    let mut bytes = std::fs::read(&head)?;
    bytes.truncate(files_begin(&bytes)?);
    std::fs::write(&head, bytes)?;
    Ok(Newer {
        head,
        rest_from: files_begin(&std::fs::read(deb)?)? + 1,
    })
}

/// The offset of the member `data.tar`, including its header.
fn files_begin(deb: &[u8]) -> Result<usize> {
    let mut at = MAGIC;
    while let Some(header) = deb.get(at..at + HEADER) {
        if header.starts_with(b"data.tar") {
            return Ok(at);
        }
        let size = header
            .get(48..58)
            .context("a member's header is incomplete")?;
        let size: usize = str::from_utf8(size)?.trim().parse()?;
        at += HEADER + size.next_multiple_of(2);
    }
    bail!("the package has no files")
}
