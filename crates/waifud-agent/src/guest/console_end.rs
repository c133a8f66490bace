//! Whether a guest's console shows the end of cloud-init in the current boot.
//!
//! cloud-init writes a line to the console when a stage begins (`Cloud-init v. 25.1.4 running 'init' at …`) and when the last
//! stage has ended (`Cloud-init v. 25.1.4 finished at … Datasource X.  Up 12.3 seconds`), at every boot (22.4 and 25.1,
//! `cmd/main.py` and `cc_final_message.py`). Neither needs vendor-data or a network. User-data can replace the last line
//! (`final_message`); then the end is not found. The line is written after failures too, so it does not show the result.
//!
//! A guest can write any text to its own console. The text determines only whether this guest is shown as ready.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use waifud_types::Timestamp;

use crate::guest::console_tail;
use crate::plain_file;

/// The maximum number of bytes that one scan reads. If more was added, the beginning is skipped.
const SCAN_MAX: u64 = 256 << 10;
/// A line without an end is not kept for the next scan if it is longer than this.
const LINE_MAX: usize = 4 << 10;

const NAME: &str = "Cloud-init v. ";
const BEGINS: &str = " running '";
const ENDS: &str = " finished at ";
/// How getty's prompt ends (`web login: `).
const LOGIN: &str = " login:";
const DATASOURCE: &str = ". Datasource ";

/// What the console shows of one boot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ConsoleReport {
    /// The boot; `None` if it is unknown where its lines begin.
    pub boot: Option<Timestamp>,
    /// Whether a stage of cloud-init has begun.
    pub began: bool,
    /// When the end of the last stage was found.
    pub finished: Option<Timestamp>,
    /// cloud-init's datasource, as it names it at the end.
    pub datasource: Option<String>,
    /// When a login prompt was found: the guest's system has booted, with or without cloud-init.
    pub login: Option<Timestamp>,
}

/// Follows the console of one guest. Lives as long as the process; where a boot's lines begin is recorded durably.
#[derive(Debug, Default)]
pub(crate) struct ConsoleWatch {
    report: ConsoleReport,
    position: u64,
}

/// The result of a scan.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Where the next scan begins.
    pub position: u64,
    /// The added lines, plain and shortened.
    lines: Vec<String>,
    /// Whether the log ends with a login prompt.
    login: bool,
}

impl ConsoleWatch {
    /// Where the next scan begins; `None` if this boot's lines are unknown. `start` is the recorded position.
    pub fn position(&self, boot: Timestamp, start: Option<u64>) -> Option<u64> {
        if self.report.boot == Some(boot) {
            Some(self.position)
        } else {
            start
        }
    }

    /// Adds the lines of a scan.
    pub fn add(&mut self, boot: Timestamp, scan: Scan, now: Timestamp) {
        if self.report.boot != Some(boot) {
            self.report = ConsoleReport {
                boot: Some(boot),
                ..ConsoleReport::default()
            };
        }
        self.position = scan.position;
        for line in scan.lines {
            self.report.add(&line, now);
        }
        if scan.login {
            self.report.login.get_or_insert(now);
        }
    }

    pub fn report(&self) -> &ConsoleReport {
        &self.report
    }
}

impl ConsoleReport {
    fn add(&mut self, line: &str, now: Timestamp) {
        let Some((_, text)) = line.split_once(NAME) else {
            return;
        };
        self.began |= text.contains(BEGINS);
        if let Some((_, rest)) = text.split_once(ENDS)
            && self.finished.is_none()
        {
            self.finished = Some(now);
            let datasource = rest.split_once(DATASOURCE).map(|(_, rest)| rest);
            self.datasource = datasource
                .map(|rest| rest.split(".  Up ").next().unwrap_or(rest).to_owned())
                .filter(|datasource| !datasource.is_empty());
        }
    }
}

/// Reads what was added to the log since `position`. Without a position, it finds the end of the log and reads no lines.
pub(crate) fn scan(log: &Path, position: Option<u64>) -> io::Result<Scan> {
    let mut file = match plain_file::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Scan::default()),
        other => other?,
    };
    let length = file.metadata()?.len();
    let Some(position) = position else {
        return Ok(Scan {
            position: length,
            ..Scan::default()
        });
    };
    // A shorter log is a new one: virtlogd has renamed the former.
    let from = if position > length { 0 } else { position };
    let from = from.max(length.saturating_sub(SCAN_MAX));
    file.seek(SeekFrom::Start(from))?;
    let mut added = Vec::new();
    file.take(SCAN_MAX).read_to_end(&mut added)?;
    // A line that is still being written is read again.
    let last = added.iter().rposition(|byte| *byte == b'\n');
    let complete = match last {
        Some(last) => last + 1,
        None if added.len() > LINE_MAX => added.len(),
        None => 0,
    };
    let open = String::from_utf8_lossy(added.get(complete..).unwrap_or_default());
    let login = console_tail::plain(&open).trim_end().ends_with(LOGIN);
    added.truncate(complete);
    let text = String::from_utf8_lossy(&added);
    Ok(Scan {
        position: from + u64::try_from(complete).unwrap_or(0),
        lines: text.split(['\n', '\r']).map(console_tail::plain).collect(),
        login,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::{self, File};
    use std::io::Write as _;
    use waifud_kit::testing::temp_path;

    const BEGIN: &str = "[   12.345678] cloud-init[402]: Cloud-init v. 22.4.2 running 'init-local' at Sat, 03 Jan 2026 10:00:00 +0000. Up 12.3 seconds.\r\n";
    const END: &str = "[   31.000000] cloud-init[555]: Cloud-init v. 25.1.4 finished at Sat, 03 Jan 2026 10:00:20 +0000. Datasource DataSourceOpenStackLocal [net,ver=2].  Up 31.00 seconds\r\n";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn follow(watch: &mut ConsoleWatch, boot: i64, start: u64, log: &Path) {
        let position = watch.position(at(boot), Some(start));
        let scan = scan(log, position).unwrap();
        watch.add(at(boot), scan, at(boot + 100));
    }

    fn append(log: &Path, text: &str) {
        let mut file = File::options().append(true).create(true).open(log).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn the_end_of_cloud_init_is_found_once_its_line_is_complete() {
        let (_dir, log) = temp_path("console.log");
        let mut watch = ConsoleWatch::default();
        follow(&mut watch, 1, 0, &log);
        assert_eq!(watch.report().finished, None, "there is no log yet");
        append(&log, BEGIN);
        follow(&mut watch, 1, 0, &log);
        assert!(watch.report().began && watch.report().finished.is_none());
        let (first, second) = END.split_at(60);
        for (part, finished) in [(first, None), (second, Some(at(101)))] {
            append(&log, part);
            follow(&mut watch, 1, 0, &log);
            assert_eq!(watch.report().finished, finished);
        }
        assert_eq!(
            watch.report().datasource.as_deref(),
            Some("DataSourceOpenStackLocal [net,ver=2]")
        );
    }

    #[test]
    fn lines_of_an_earlier_boot_are_ignored() {
        let (_dir, log) = temp_path("console.log");
        append(&log, END);
        // The next boot begins here.
        let start = scan(&log, None).unwrap();
        assert!(start.lines.is_empty());
        let mut watch = ConsoleWatch::default();
        follow(&mut watch, 2, start.position, &log);
        append(&log, BEGIN);
        follow(&mut watch, 2, start.position, &log);
        assert_eq!(watch.report().finished, None);
        append(&log, END);
        follow(&mut watch, 2, start.position, &log);
        assert!(watch.report().finished.is_some());
        // Another process reads them again from the recorded position.
        let mut other = ConsoleWatch::default();
        follow(&mut other, 2, start.position, &log);
        assert_eq!(watch.report(), other.report());
        // And another boot begins without them.
        let start = scan(&log, None).unwrap().position;
        follow(&mut watch, 3, start, &log);
        assert_eq!(watch.report().finished, None);
    }

    #[test]
    fn scanning_continues_after_a_rotated_log_and_after_a_flood() {
        let (_dir, log) = temp_path("console.log");
        append(&log, &"x".repeat(10_000));
        let mut watch = ConsoleWatch::default();
        follow(&mut watch, 1, 0, &log);
        fs::remove_file(&log).unwrap();
        append(&log, BEGIN);
        follow(&mut watch, 1, 0, &log);
        assert!(watch.report().began, "from the beginning of the new log");
        append(&log, &"no line end ".repeat(100_000));
        append(&log, &format!("\n{END}"));
        follow(&mut watch, 1, 0, &log);
        assert!(watch.report().finished.is_some());
    }

    #[test]
    fn a_login_prompt_at_the_end_of_the_log_is_found_once_per_boot() {
        let (_dir, log) = temp_path("console.log");
        let mut watch = ConsoleWatch::default();
        append(&log, "Last login: yesterday\r\n");
        follow(&mut watch, 1, 0, &log);
        assert_eq!(watch.report().login, None);
        append(&log, "\r\nWelcome to Alpine Linux 3.22\r\n\r\nweb login: ");
        follow(&mut watch, 1, 0, &log);
        assert_eq!(watch.report().login, Some(at(101)));
        append(&log, "root\r\n");
        follow(&mut watch, 1, 0, &log);
        assert_eq!(watch.report().login, Some(at(101)));
        let start = scan(&log, None).unwrap().position;
        follow(&mut watch, 2, start, &log);
        assert_eq!(watch.report().login, None, "it is about the previous boot");
    }

    #[test]
    fn other_lines_are_not_the_end() {
        for line in [
            "cloud-init finished at last\n",
            "Cloud-init v. 22.4.2 running 'modules:final' at x. Up 1 seconds.\n",
            "[  OK  ] Finished cloud-final.service\n",
        ] {
            let mut report = ConsoleReport::default();
            report.add(line, at(1));
            assert_eq!(report.finished, None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_neither_a_panic_nor_a_position_beyond_the_log(
            bytes in proptest::collection::vec(any::<u8>(), 0..6000),
            position in proptest::option::of(0_u64..8000),
        ) {
            let (_dir, log) = temp_path("console.log");
            fs::write(&log, &bytes).unwrap();
            let scan = scan(&log, position).unwrap();
            prop_assert!(scan.position <= bytes.len() as u64);
        }
    }
}
