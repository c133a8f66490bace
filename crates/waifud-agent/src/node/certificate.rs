//! How long this node's certificate is valid, as a condition: without one waifud does not hear it.

use waifud_types::Timestamp;
use waifud_types::status::Condition;

use crate::instance::conditions::condition;

/// It is told of so many days before it ends.
const SOON_DAYS: i64 = 60;

/// What there is to say of a certificate that ends then.
pub(crate) fn of(until: Timestamp, now: Timestamp) -> Condition {
    let day = until.strftime("%Y-%m-%d");
    let left = until.duration_since(now).as_hours() / 24;
    let remedy =
        "let the node join again with a token of its name: waifuctl node token create --name NODE";
    let (ok, reason, message) = if until <= now {
        (
            false,
            "expired",
            format!("valid until {day}, which is past; {remedy}"),
        )
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
    fn an_end_that_is_near_or_past_is_told_with_the_remedy() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let said = |until: &str| {
            let said = of(until.parse().unwrap(), now);
            assert_eq!(said.ok, !said.message.contains("join again"));
            said.reason
        };
        assert_eq!(said("2047-01-01T00:00:00Z"), "valid");
        assert_eq!(said("2026-07-01T00:00:00Z"), "expires-soon");
        assert_eq!(said("2026-05-01T00:00:00Z"), "expired");
    }
}
