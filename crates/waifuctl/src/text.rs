//! Texts for people: escaping what guests wrote, ages, yes and no.

use jiff::{SignedDuration, Timestamp};

pub use waifud_kit::terminal::{escape, escape_json as tame_json, escape_lines as tame, is_unsafe};

/// Fields as the API calls them, in the words of the options that set them.
pub fn fields(of_the_api: &[String]) -> Vec<String> {
    let fields = of_the_api.iter();
    fields
        .map(|field| escape(&field.trim_end_matches("_bytes").replace('_', "-")))
        .collect()
}

/// `3d`, `4h`, `12m`, `5s`: the largest unit only. A moment in the future (clocks differ) is `0s`.
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

/// The wall clock of a moment in the caller's time zone.
pub fn clock(at: Timestamp) -> String {
    at.to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// The wall clock of a moment: hours and minutes of today, else the date as well.
pub fn since(at: Timestamp, now: Timestamp) -> String {
    let zone = jiff::tz::TimeZone::system();
    let (at, now) = (at.to_zoned(zone.clone()), now.to_zoned(zone));
    let format = if at.date() == now.date() {
        "%H:%M"
    } else {
        "%Y-%m-%d %H:%M"
    };
    at.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_shown_and_not_obeyed() {
        assert_eq!(
            escape("a\x1b[31mb\u{202e}c\nd"),
            "a\\u{1b}[31mb\\u{202e}c d"
        );
        assert_eq!(escape("plain — ü"), "plain — ü");
    }

    /// What a hostile guest would write: any characters, the worst of them often.
    pub fn hostile() -> impl proptest::strategy::Strategy<Value = String> {
        use proptest::prelude::*;
        let worst = proptest::sample::select(vec![
            "\x1b[2J",
            "\x1b]0;x\x07",
            "\u{9b}31m",
            "\u{90}",
            "\r",
            "\x08",
            "\x7f",
            "\u{202e}",
            "\u{2066}",
            "\u{61c}",
            "\u{2028}",
            "\u{e0041}",
            "\u{feff}",
            "\0",
            "\n",
            "\\",
            "\"",
        ]);
        let piece = prop_oneof![worst.prop_map(str::to_owned), any::<String>()];
        proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_gets_through(text in hostile()) {
            proptest::prop_assert!(!escape(&text).chars().any(is_unsafe));
            proptest::prop_assert!(!tame(&text).chars().any(|c| !matches!(c, '\n' | '\t') && is_unsafe(c)));
            let json = serde_json::to_string(&text).unwrap();
            let tamed = tame_json(&json);
            proptest::prop_assert!(!tamed.chars().any(is_unsafe));
            proptest::prop_assert_eq!(serde_json::from_str::<String>(&tamed).unwrap(), text);
        }
    }

    #[test]
    fn fields_have_the_words_of_the_command_line() {
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
