//! Parses the output of a test program: the numbers of passed, failed and ignored tests, skipped tests, and the time of each test.

use std::time::Duration;

/// A test and its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// The test's path in its program.
    pub name: String,
    /// From its start to its end.
    pub time: Duration,
}

/// The result of one program.
#[derive(Debug, Default, PartialEq)]
pub struct Summary {
    pub passed: usize,
    pub failed: usize,
    pub ignored: usize,
    /// The tests of which a time is known.
    pub timed: Vec<Timed>,
    /// Lines of tests that could not run on this machine.
    pub skipped: Vec<String>,
}

/// Reads the output of libtest, with or without `--report-time`.
///
/// With one thread, libtest prints `test NAME ... ` when the test starts, so output of the test's child processes can
/// stand between that and the result.
pub fn parse(text: &str) -> Summary {
    let mut summary = Summary::default();
    let mut started: Option<String> = None;
    for line in text.lines() {
        if let Some(skipped) = line.find("SKIPPED: ").and_then(|at| line.get(at..)) {
            summary.skipped.push(skipped.to_owned());
        }
        if let Some((passed, failed, ignored)) = result_line(line) {
            summary.passed += passed;
            summary.failed += failed;
            summary.ignored += ignored;
            continue;
        }
        let rest = match line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            Some((name, rest)) => {
                started = Some(name.trim_end_matches(" - should panic").to_owned());
                rest
            }
            None => line,
        };
        if let Some(time) = time_at_end(rest)
            && let Some(name) = started.take()
        {
            summary.timed.push(Timed { name, time });
        }
    }
    summary
}

/// `ok <0.123s>` or `FAILED <0.123s>` at the end of a line.
fn time_at_end(line: &str) -> Option<Duration> {
    let (before, time) = line.strip_suffix("s>")?.rsplit_once(" <")?;
    (before.ends_with("ok") || before.ends_with("FAILED")).then_some(())?;
    Duration::try_from_secs_f64(time.parse().ok()?).ok()
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
fn result_line(line: &str) -> Option<(usize, usize, usize)> {
    let line = line.strip_prefix("test result: ")?;
    let count = |word: &str| -> Option<usize> {
        let (before, _) = line.split_once(word)?;
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some((count("passed;")?, count("failed;")?, count("ignored;")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(name: &str, milliseconds: u64) -> Timed {
        Timed {
            name: name.to_owned(),
            time: Duration::from_millis(milliseconds),
        }
    }

    #[test]
    fn times_counts_and_skips_are_read() {
        let text = "\nrunning 4 tests\ntest a::b ... ok <0.123s>\nSKIPPED: not root\ntest c ... FAILED <12.5s>\n\
                    test d - should panic ... ok <0.001s>\ntest e ... ignored\n\n\
                    test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 12.51s\n";
        let summary = parse(text);
        assert_eq!((summary.passed, summary.failed, summary.ignored), (2, 1, 1));
        assert_eq!(summary.skipped, ["SKIPPED: not root"]);
        assert_eq!(
            summary.timed,
            [timed("a::b", 123), timed("c", 12_500), timed("d", 1)]
        );
    }

    #[test]
    fn output_between_the_start_and_the_result_of_a_test_is_ignored() {
        let text = "test one ... SKIPPED: no KVM\nsome output\nok <1.000s>\ntest two ... noise ok <2.0s>\n";
        let summary = parse(text);
        assert_eq!(summary.timed, [timed("one", 1000), timed("two", 2000)]);
        assert_eq!(summary.skipped, ["SKIPPED: no KVM"]);
    }

    #[test]
    fn without_times_the_counts_are_still_read() {
        let text = "test a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n";
        let summary = parse(text);
        assert_eq!((summary.passed, summary.timed.len()), (1, 0));
    }
}
