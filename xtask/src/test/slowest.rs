//! The table of the slowest tests, printed at the end of a run.

use std::fmt::Write as _;
use std::time::Duration;

use super::output::Timed;

/// How many tests the table has.
const COUNT: usize = 20;

/// The table, or nothing when no time is known. `tests` are the programs' names with the tests' times.
pub fn table<'a>(tests: impl IntoIterator<Item = (&'a str, &'a Timed)>) -> String {
    let mut tests: Vec<(Duration, &str, &str)> = tests
        .into_iter()
        .map(|(program, test)| (test.time, program, test.name.as_str()))
        .collect();
    if tests.is_empty() {
        return String::new();
    }
    tests.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.cmp(other)));
    let total: Duration = tests.iter().map(|test| test.0).sum();
    let mut text = format!(
        "{:>8}  THE {COUNT} SLOWEST OF {} TESTS (all together {:.0} s; tests run side by side)\n",
        "SECONDS",
        tests.len(),
        total.as_secs_f64()
    );
    for (time, program, test) in tests.iter().take(COUNT) {
        let _ = writeln!(text, "{:>8.1}  {program} {test}", time.as_secs_f64());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_tests_come_first_and_only_twenty_are_listed() {
        let tests: Vec<Timed> = (0..30)
            .map(|seconds| Timed {
                name: format!("t{seconds}"),
                time: Duration::from_secs(seconds),
            })
            .collect();
        let text = table(tests.iter().map(|test| ("waifud::x", test)));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 21);
        assert!(lines[0].contains("OF 30 TESTS"), "{text}");
        assert_eq!(lines[1], "    29.0  waifud::x t29");
        assert_eq!(lines[20], "    10.0  waifud::x t10");
    }

    #[test]
    fn without_times_there_is_no_table() {
        assert_eq!(table([]), "");
    }
}
