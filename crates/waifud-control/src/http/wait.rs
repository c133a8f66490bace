//! `?wait=30s`: the answer is delayed until the change is applied or the time is up.

use std::time::Duration;

use waifud_api::Problem;

use super::query::Params;
use crate::problems;

/// The longest wait in one request; proxies close longer ones.
const LONGEST: Duration = Duration::from_hours(1);

/// The requested wait.
pub fn wait(params: &mut Params) -> Result<Option<Duration>, Problem> {
    let Some(text) = params.one("wait")? else {
        return Ok(None);
    };
    match parse(&text) {
        Some(wait) if wait <= LONGEST => Ok(Some(wait)),
        _ => Err(problems::bad_query(
            "wait",
            "the parameter `wait` is not a valid duration",
            "use a number and a unit, at most 1h, for example 500ms, 30s or 5m",
        )),
    }
}

fn parse(text: &str) -> Option<Duration> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" | "" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse("30s"), Some(Duration::from_secs(30)));
        assert_eq!(parse("30"), Some(Duration::from_secs(30)));
        assert_eq!(parse("5m"), Some(Duration::from_mins(5)));
        for bad in ["", "s", "-1s", "1.5s", "1d", "99999999999999999999s"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
