//! Parses durations: numbers with units, for example `90s`, `1h30m` or `30d`.

use std::time::Duration;

/// A longer wait is probably a typing error.
const WAIT_MAX: Duration = Duration::from_hours(7 * 24);

/// Parses the duration of a wait, at most 7 days.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match read(text) {
        Ok(time) if time > WAIT_MAX => Err(format!("{text} exceeds the limit of 7d")),
        other => other,
    }
}

/// Parses a duration of any length into seconds.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    read(text).map(|time| time.as_secs())
}

/// Parses the timeout of `exec` into seconds: 1s to 1h. A number without a unit is in seconds, for compatibility.
pub fn parse_exec_timeout(text: &str) -> Result<u32, String> {
    let seconds = match text.parse() {
        Ok(seconds) => seconds,
        Err(_) => parse_seconds(text)?,
    };
    u32::try_from(seconds)
        .ok()
        .filter(|seconds| (1..=3600).contains(seconds))
        .ok_or_else(|| format!("{text} is out of range: 1s to 1h"))
}

fn read(text: &str) -> Result<Duration, String> {
    let bad = |why: &str| format!("{text:?} {why}: write for example 90s, 10m, 1h30m or 30d");
    let mut rest = text;
    let mut seconds = 0_u64;
    let mut before = u64::MAX;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(|| bad("has no unit"))?;
        let (number, tail) = rest.split_at(end);
        let unit = match tail.chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86400,
            _ => return Err(bad("is not a duration")),
        };
        // Units in ascending order, as in `30m1h`, are probably a mistake.
        if number.is_empty() || unit >= before {
            return Err(bad("is not a duration"));
        }
        before = unit;
        let part = number.parse::<u64>().ok();
        seconds = part
            .and_then(|part| part.checked_mul(unit)?.checked_add(seconds))
            .ok_or_else(|| bad("is too long"))?;
        rest = tail.get(1..).unwrap_or_default();
    }
    if seconds == 0 {
        return Err(bad("is not a duration"));
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_unit() {
        assert_eq!(parse_duration("10m"), Ok(Duration::from_mins(10)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(parse_duration("7d"), Ok(WAIT_MAX));
        for bad in [
            "10", "", "m", "0s", "-1s", "8d", "1w", "1m1h", "1m1m", "1h30", "1é",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_duration("10").unwrap_err().contains("no unit"));
    }

    #[test]
    fn an_exec_timeout_is_in_seconds_or_has_a_unit() {
        assert_eq!(parse_exec_timeout("600"), Ok(600));
        assert_eq!(parse_exec_timeout("10m"), Ok(600));
        for bad in ["0", "0s", "3601", "2h", "-1", "1w"] {
            assert!(parse_exec_timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_lifetime_is_bounded() {
        assert_eq!(parse_seconds("365d"), Ok(365 * 86400));
        for bad in [
            "30",
            "0d",
            "d",
            "-1d",
            "99999999999999999999d",
            "99999999999999999d",
        ] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
