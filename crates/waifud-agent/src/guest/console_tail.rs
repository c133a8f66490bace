//! The most informative lines at the end of a guest's console log.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use waifud_types::Timestamp;

use crate::plain_file;

/// Bytes at the end of the log that are searched: some hundred lines.
const TAIL: u64 = 16 << 10;
/// The maximum number of lines.
const LINES: usize = 3;
/// The maximum number of characters in a line.
const LINE_MAX: usize = 200;

/// File times are those of the kernel's last tick (`current_time` in fs/inode.c of Linux). They are behind the clock by up
/// to one tick, which is at most 10 ms (`CONFIG_HZ=100`), or by more if ticks are late.
const TICK: Duration = Duration::from_millis(50);

/// The first message of Linux. Lines before it belong to an earlier boot.
const BOOT: &str = "Linux version ";
/// Error messages of systemd, the kernel, cloud-init and the firmware.
const ERROR_MARKS: [&str; 10] = [
    "[FAILED]",
    "[DEPEND]",
    "Kernel panic",
    "emergency mode",
    "rescue mode",
    "Out of memory",
    "Unable to mount root",
    "No bootable device",
    "Boot failed",
    "Traceback (most recent call last)",
];

/// The relevant lines of a log; empty if nothing was added since the boot.
pub fn read(log: &Path, boot: Timestamp) -> io::Result<Vec<String>> {
    let mut file = match plain_file::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let about = file.metadata()?;
    let changed = Timestamp::try_from(about.modified()?).unwrap_or(Timestamp::MIN);
    if changed < boot.saturating_sub(TICK).unwrap_or(Timestamp::MIN) {
        return Ok(Vec::new());
    }
    file.seek(SeekFrom::Start(about.len().saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok(last_lines(&String::from_utf8_lossy(&tail)))
}

/// The last lines of the last boot that contain an error, or without an error the last line that is not empty.
pub fn last_lines(tail: &str) -> Vec<String> {
    let lines: Vec<String> = tail
        .split(['\n', '\r'])
        .map(plain)
        .filter(|line| !line.is_empty())
        .collect();
    let boot = lines.iter().rposition(|line| line.contains(BOOT));
    let lines = lines.get(boot.unwrap_or(0)..).unwrap_or_default();
    let is_error = |line: &&String| ERROR_MARKS.iter().any(|mark| line.contains(mark));
    let mut selected: Vec<String> = lines
        .iter()
        .rev()
        .filter(is_error)
        .take(LINES)
        .cloned()
        .collect();
    selected.reverse();
    if selected.is_empty() {
        selected.extend(lines.last().cloned());
    }
    selected
}

/// The line without escape sequences (ECMA-48, section 5.4) and control characters, shortened.
pub(super) fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.next();
            // Parameters, then one final byte from @ to ~.
            while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
        } else if c.is_control() {
            out.push(' ');
        } else {
            out.push(c);
        }
    }
    out.trim().chars().take(LINE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use waifud_kit::testing::temp_path;

    #[test]
    fn errors_are_preferred_to_later_lines() {
        let tail = "[  OK  ] Started cron\r\n\
            [\u{1b}[0;1;31mFAILED\u{1b}[0m] Failed to start systemd-networkd-wait-online.\r\n\
            [  OK  ] Reached target\r\n\r\nweb login: ";
        assert_eq!(
            last_lines(tail),
            ["[FAILED] Failed to start systemd-networkd-wait-online."]
        );
    }

    #[test]
    fn without_errors_the_last_line_is_used() {
        assert_eq!(last_lines("one\ntwo\n\n  \n"), ["two"]);
        assert!(last_lines("\n\r\n").is_empty());
    }

    #[test]
    fn errors_of_an_earlier_boot_are_ignored() {
        let tail = "Kernel panic - not syncing\n[0.0] Linux version 6.1\nbooting\n";
        assert_eq!(last_lines(tail), ["booting"]);
    }

    #[test]
    fn a_log_older_than_the_boot_is_ignored() {
        let (_dir, log) = temp_path("console.log");
        assert!(read(&log, Timestamp::UNIX_EPOCH).unwrap().is_empty());
        std::fs::write(&log, format!("{}\nKernel panic\n", "x".repeat(100_000))).unwrap();
        assert_eq!(read(&log, Timestamp::UNIX_EPOCH).unwrap(), ["Kernel panic"]);
        assert!(read(&log, Timestamp::MAX).unwrap().is_empty());
    }

    #[test]
    fn lines_of_the_boot_are_used_although_file_times_lag_by_a_tick() {
        let (_dir, log) = temp_path("console.log");
        std::fs::write(&log, "Kernel panic\n").unwrap();
        let boot: Timestamp = "2026-01-02T12:00:00Z".parse().unwrap();
        let written = |before: u64| {
            let time = std::time::SystemTime::from(boot) - Duration::from_millis(before);
            File::options().write(true).open(&log)?.set_modified(time)?;
            read(&log, boot)
        };
        assert_eq!(written(10).unwrap(), ["Kernel panic"]);
        assert!(written(1000).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_text_gives_few_bounded_lines_without_control_characters(tail in "(\\PC|[\\x00-\\x1f]){0,400}") {
            let lines = last_lines(&tail);
            prop_assert!(lines.len() <= LINES);
            for line in lines {
                prop_assert!(line.chars().count() <= LINE_MAX && !line.chars().any(char::is_control));
            }
        }
    }
}
