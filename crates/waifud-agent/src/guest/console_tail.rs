//! A guest's last words: the lines at the end of its console's log that tell most.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use waifud_types::Timestamp;

use crate::plain_file;

/// Bytes of the log's end that are looked at: some hundred lines.
const TAIL: u64 = 16 << 10;
/// Lines that are told at most.
const LINES: usize = 3;
/// Characters of one line at most.
const LINE_MAX: usize = 200;

/// A file's times are those of the kernel's last tick (`current_time` in Linux' fs/inode.c): as much behind the clock as
/// a tick is long, 10 ms at most (`CONFIG_HZ=100`), and more where ticks came late.
const TICK: Duration = Duration::from_millis(50);

/// What begins a boot of Linux: lines before it are an earlier boot's.
const BOOT: &str = "Linux version ";
/// Trouble, in the words of systemd, the kernel, cloud-init and the firmware.
const TELLING: [&str; 10] = [
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

/// The last words in a log; none when nothing was added to it since the boot.
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

/// Of the last boot in the text: the last lines that tell of trouble, or else the last one that is not empty.
pub fn last_lines(tail: &str) -> Vec<String> {
    let lines: Vec<String> = tail
        .split(['\n', '\r'])
        .map(plain)
        .filter(|line| !line.is_empty())
        .collect();
    let boot = lines.iter().rposition(|line| line.contains(BOOT));
    let lines = lines.get(boot.unwrap_or(0)..).unwrap_or_default();
    let telling = |line: &&String| TELLING.iter().any(|mark| line.contains(mark));
    let mut told: Vec<String> = lines
        .iter()
        .rev()
        .filter(telling)
        .take(LINES)
        .cloned()
        .collect();
    told.reverse();
    if told.is_empty() {
        told.extend(lines.last().cloned());
    }
    told
}

/// A line as somebody would read it: without escape sequences (ECMA-48, section 5.4) and control characters, bounded.
fn plain(line: &str) -> String {
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

    #[test]
    fn trouble_is_told_rather_than_what_comes_after_it() {
        let tail = "[  OK  ] Started cron\r\n\
            [\u{1b}[0;1;31mFAILED\u{1b}[0m] Failed to start systemd-networkd-wait-online.\r\n\
            [  OK  ] Reached target\r\n\r\nweb login: ";
        assert_eq!(
            last_lines(tail),
            ["[FAILED] Failed to start systemd-networkd-wait-online."]
        );
    }

    #[test]
    fn without_trouble_the_last_line_is_told() {
        assert_eq!(last_lines("one\ntwo\n\n  \n"), ["two"]);
        assert!(last_lines("\n\r\n").is_empty());
    }

    #[test]
    fn trouble_of_an_earlier_boot_is_not_this_ones() {
        let tail = "Kernel panic - not syncing\n[0.0] Linux version 6.1\nbooting\n";
        assert_eq!(last_lines(tail), ["booting"]);
    }

    #[test]
    fn a_log_that_is_older_than_the_boot_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        assert!(read(&log, Timestamp::UNIX_EPOCH).unwrap().is_empty());
        std::fs::write(&log, format!("{}\nKernel panic\n", "x".repeat(100_000))).unwrap();
        assert_eq!(read(&log, Timestamp::UNIX_EPOCH).unwrap(), ["Kernel panic"]);
        assert!(read(&log, Timestamp::MAX).unwrap().is_empty());
    }

    #[test]
    fn words_of_the_boot_count_although_the_files_clock_is_a_tick_behind() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
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
            let told = last_lines(&tail);
            prop_assert!(told.len() <= LINES);
            for line in told {
                prop_assert!(line.chars().count() <= LINE_MAX && !line.chars().any(char::is_control));
            }
        }
    }
}
