//! Waits for conditions and runs commands, each with a deadline.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Shortest interval between checks of a condition.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// The longest. A check in an emulated machine takes seconds.
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// Waits for `time`, at most a minute. A signal ends the wait early.
pub fn pause(time: Duration) {
    let millis = u16::try_from(time.as_millis()).unwrap_or(60_000);
    // After an interrupted pause the caller checks its condition early.
    let _ = poll(&mut [], PollTimeout::from(millis));
}

/// Checks `condition` until it returns a value or an error, or `limit` has passed. `what` names it in the error.
///
/// After a check that takes long, for example a program in an emulated guest, it pauses as long: checks take at most half
/// of the time of what they wait for.
///
/// # Errors
/// The condition's error, or a timeout.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        let begun = Instant::now();
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("timed out after {} s waiting for {what}", limit.as_secs());
        }
        pause(begun.elapsed().clamp(CHECK_INTERVAL, CHECK_INTERVAL_MAX));
    }
}

/// Runs `command` without input and returns its output. Kills it after `limit`.
///
/// # Errors
/// It cannot be started, or exceeds the limit. A failing exit status is not an error.
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
        let reading = |open| {
            if open {
                PollFlags::POLLIN
            } else {
                PollFlags::empty()
            }
        };
        let mut fds = [
            PollFd::new(stdout.as_fd(), reading(out_open)),
            PollFd::new(stderr.as_fd(), reading(err_open)),
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
        // A closed pipe keeps reporting a hang-up, which must not turn the poll of the other one into a busy loop.
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

/// Runs `command` and returns its standard output.
///
/// # Errors
/// It cannot be started, exceeds the limit, or fails. The error then contains its standard error.
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
    fn all_output_of_a_command_that_fills_both_pipes_is_read() {
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
    fn a_hanging_command_is_killed_after_its_limit() {
        let mut command = Command::new("cat");
        command.arg("/dev/zero");
        let error = output(&mut command, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("took more than"), "{error}");
    }

    #[test]
    fn a_condition_that_never_holds_times_out_with_its_name() {
        let error = until::<()>("the moon", Duration::from_millis(1), || Ok(None)).unwrap_err();
        assert!(error.to_string().contains("waiting for the moon"));
    }
}
