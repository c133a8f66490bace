//! Text output: escaping of text from guests, ages and times.

use std::fmt::Write;

use jiff::{SignedDuration, Timestamp};
pub use waifud_kit::terminal::{escape, escape_json, escape_lines};
use waifud_types::status::Condition;

/// Converts field names of the API to names of options.
pub fn fields(of_the_api: &[String]) -> Vec<String> {
    let fields = of_the_api.iter();
    fields
        .map(|field| escape(&field.trim_end_matches("_bytes").replace('_', "-")))
        .collect()
}

/// Formats lines with a label and a value each. `write` calls its argument for every line.
pub fn field_list(write: impl FnOnce(&mut dyn FnMut(&str, &str))) -> String {
    let mut out = String::new();
    write(&mut |label, value| {
        let _infallible = writeln!(out, "{label:<12} {value}");
    });
    out
}

/// Writes a line for each condition that is not ok: its title, its message, and the remedy if there is one.
pub fn failing_conditions(
    line: &mut dyn FnMut(&str, &str),
    conditions: &[Condition],
    title_and_remedy: impl Fn(&Condition) -> (String, Option<String>),
) {
    for condition in conditions.iter().filter(|condition| !condition.ok) {
        let (title, remedy) = title_and_remedy(condition);
        let remedy = remedy.map_or_else(String::new, |remedy| format!("; {remedy}"));
        let message = escape(&condition.message);
        line("condition", &format!("{title}: {message}{remedy}"));
    }
}

/// Formats an age with one unit: `3d`, `4h`, `12m`, `5s`. A time in the future (clocks differ) is `0s`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now
        .duration_since(since)
        .max(SignedDuration::ZERO)
        .as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Formats a time in the user's time zone.
pub fn clock(at: Timestamp) -> String {
    at.to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// Formats a time in the user's time zone: only hours and minutes if it is today.
pub fn since(at: Timestamp, now: Timestamp) -> String {
    today_or_dated(at, now, "%H:%M")
}

/// Formats a time in the user's time zone, with the date unless it is today.
pub fn today_or_dated(at: Timestamp, now: Timestamp, time_of_day: &str) -> String {
    let zone = jiff::tz::TimeZone::system();
    let (at, now) = (at.to_zoned(zone.clone()), now.to_zoned(zone));
    if at.date() == now.date() {
        at.strftime(time_of_day).to_string()
    } else {
        at.strftime(&format!("%Y-%m-%d {time_of_day}")).to_string()
    }
}

#[cfg(test)]
mod tests {
    use waifud_kit::terminal::is_unsafe;

    use super::*;

    #[test]
    fn escape_sequences_are_escaped() {
        assert_eq!(
            escape("a\x1b[31mb\u{202e}c\nd"),
            "a\\u{1b}[31mb\\u{202e}c d"
        );
        assert_eq!(escape("plain — ü"), "plain — ü");
    }

    /// Text of a hostile guest: any characters, with frequent control sequences.
    pub fn hostile() -> impl proptest::strategy::Strategy<Value = String> {
        use proptest::prelude::*;
        let worst = proptest::sample::select(waifud_kit::testing::UNSAFE_TEXTS);
        let piece = prop_oneof![worst.prop_map(str::to_owned), any::<String>()];
        proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest::proptest! {
        #[test]
        fn no_unsafe_character_remains(text in hostile()) {
            proptest::prop_assert!(!escape(&text).chars().any(is_unsafe));
            proptest::prop_assert!(!escape_lines(&text).chars().any(|c| !matches!(c, '\n' | '\t') && is_unsafe(c)));
            let json = serde_json::to_string(&text).unwrap();
            let escaped = escape_json(&json);
            proptest::prop_assert!(!escaped.chars().any(is_unsafe));
            proptest::prop_assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        }
    }

    #[test]
    fn fields_are_named_like_their_options() {
        let fields_of = |text: &str| fields(&[text.to_owned()]).concat();
        assert_eq!(fields_of("memory_bytes"), "memory");
        assert_eq!(fields_of("user_data"), "user-data");
        assert_eq!(fields_of("cpus"), "cpus");
    }

    #[test]
    fn ages_use_one_unit() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1000);
        for (seconds, text) in [
            (-5, "0s"),
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (7200, "2h"),
            (200_000, "2d"),
        ] {
            assert_eq!(age(now - SignedDuration::from_secs(seconds), now), text);
        }
    }
}
