//! Waiting for conditions with a deadline, and running commands with one.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How often a condition that nothing signals is looked at.
pub const LOOK: Duration = Duration::from_millis(20);

/// Lets `time` (at most a minute) pass, or less when a signal arrives.
pub fn pause(time: Duration) {
    let millis = u16::try_from(time.as_millis()).unwrap_or(60_000);
    // An interrupted pause is a short pause: the caller looks at its condition again.
    let _ = poll(&mut [], PollTimeout::from(millis));
}

/// Looks at `condition` until it gives a value, an error, or `limit` has passed.
///
/// # Errors
/// The condition's own error; or "TIME waiting for WHAT" when the limit has passed.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{} s waiting for {what}", limit.as_secs());
        }
        pause(LOOK);
    }
}

/// Runs `command` without input and gives its output, or kills it when `limit` has passed.
///
/// # Errors
/// It could not be started, or took too long. A failing exit status is no error here.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let end = Instant::now() + limit;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let mut stderr = child.stderr.take().context("no stderr")?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{program} took more than {} s", limit.as_secs());
        }
        let left = PollTimeout::from(u16::try_from(left.as_millis()).unwrap_or(60_000));
        let mut fds = [
            PollFd::new(
                stdout.as_fd(),
                if out_open {
                    PollFlags::POLLIN
                } else {
                    PollFlags::empty()
                },
            ),
            PollFd::new(
                stderr.as_fd(),
                if err_open {
                    PollFlags::POLLIN
                } else {
                    PollFlags::empty()
                },
            ),
        ];
        if poll(&mut fds, left).is_err() {
            continue;
        }
        let ready = fds.map(|fd| fd.any().unwrap_or(false));
        if out_open && ready[0] {
            out_open = read_some(&mut stdout, &mut out)?;
        }
        if err_open && ready[1] {
            err_open = read_some(&mut stderr, &mut err)?;
        }
        // A closed pipe reports a hang-up for ever; the other one's poll must not spin on it.
        if !out_open || !err_open {
            pause(Duration::from_millis(1));
        }
    }
    let status = until(
        &format!("{program} to end"),
        limit,
        || Ok(child.try_wait()?),
    );
    if status.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(Output {
        status: status?,
        stdout: out,
        stderr: err,
    })
}

fn read_some(from: &mut impl Read, to: &mut Vec<u8>) -> Result<bool> {
    let mut part = [0; 16 * 1024];
    let count = from.read(&mut part)?;
    to.extend(part.iter().take(count));
    Ok(count > 0)
}

/// Runs `command` and gives its stdout; a failing exit status is an error with its stderr.
///
/// # Errors
/// Not started, too slow, or failed.
pub fn run(command: &mut Command, limit: Duration) -> Result<String> {
    let result = output(command, limit)?;
    if !result.status.success() {
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect();
        bail!(
            "`{}` failed with {}: {}",
            words.join(" "),
            result.status,
            String::from_utf8_lossy(&result.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_writes_much_on_both_pipes_is_read_whole() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; exit 3",
        ]);
        let output = output(&mut command, Duration::from_mins(1)).unwrap();
        assert_eq!(
            (output.stdout.len(), output.stderr.len()),
            (300_000, 300_000)
        );
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn a_command_that_hangs_is_killed_at_its_limit() {
        let mut command = Command::new("cat");
        command.arg("/dev/zero");
        let error = output(&mut command, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("took more than"), "{error}");
    }

    #[test]
    fn a_condition_that_never_holds_ends_with_what_was_awaited() {
        let error = until::<()>("the moon", Duration::from_millis(1), || Ok(None)).unwrap_err();
        assert!(error.to_string().contains("waiting for the moon"));
    }
}
