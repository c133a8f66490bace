//! The validity of this node's certificate, as a condition. Without a valid one waifud refuses the node.

use waifud_types::Timestamp;
use waifud_types::status::Condition;

use crate::condition::condition;

/// The condition is reported this many days before the end.
const SOON_DAYS: i64 = 60;

/// The condition of a certificate that is valid until `until`.
pub(crate) fn of(until: Timestamp, now: Timestamp) -> Condition {
    let day = until.strftime("%Y-%m-%d");
    let left = until.duration_since(now).as_hours() / 24;
    let remedy = "have the node join again with a token for its name";
    let (ok, reason, message) = if until <= now {
        (false, "expired", format!("expired on {day}; {remedy}"))
    } else if left < SOON_DAYS {
        (
            false,
            "expires-soon",
            format!("valid until {day}; {remedy}"),
        )
    } else {
        (true, "valid", format!("valid until {day}"))
    };
    condition("certificate", ok, reason, message, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_or_past_end_is_reported_with_the_remedy() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let reason = |until: &str| {
            let condition = of(until.parse().unwrap(), now);
            assert_eq!(condition.ok, !condition.message.contains("join again"));
            condition.reason
        };
        assert_eq!(reason("2047-01-01T00:00:00Z"), "valid");
        assert_eq!(reason("2026-07-01T00:00:00Z"), "expires-soon");
        assert_eq!(reason("2026-05-01T00:00:00Z"), "expired");
    }
}
