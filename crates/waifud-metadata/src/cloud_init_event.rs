//! Events of cloud-init's reporter: one JSON object for each start and end of a stage or module. The contents are untrusted
//! and made safe for terminals.

use serde::Deserialize;
use waifud_api::metadatad::CloudInitEvent;
use waifud_types::evidence::ModuleResult;

use crate::phone_home::harmless;

/// The maximum size of an event in bytes. cloud-init's events have 200 to 400; our configuration attaches no files.
pub(crate) const EVENT_MAX: usize = 4 << 10;
/// How many characters of a name are kept.
const NAME_MAX: usize = 120;
/// How many characters of a description are kept.
const DESCRIPTION_MAX: usize = 200;

/// An event in the format of `cloudinit/reporting/events.py`, since 0.7.7.
#[derive(Deserialize)]
struct Posted {
    name: String,
    event_type: EventType,
    #[serde(default)]
    description: String,
    #[serde(default)]
    result: Option<PostedResult>,
    #[serde(default)]
    timestamp: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EventType {
    Start,
    Finish,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum PostedResult {
    Success,
    Warn,
    Fail,
}

/// Reads an event; `None` if it is not a valid one.
pub(crate) fn parse(body: &[u8]) -> Option<CloudInitEvent> {
    let posted: Posted = serde_json::from_slice(body).ok()?;
    let name = harmless(&posted.name, NAME_MAX);
    if name.is_empty() {
        return None;
    }
    let result = match (posted.event_type, posted.result) {
        (EventType::Start, _) => None,
        (EventType::Finish, Some(PostedResult::Fail)) => Some(ModuleResult::Fail),
        (EventType::Finish, Some(PostedResult::Warn)) => Some(ModuleResult::Warn),
        (EventType::Finish, Some(PostedResult::Success) | None) => Some(ModuleResult::Success),
    };
    Some(CloudInitEvent {
        name,
        result,
        description: harmless(&posted.description, DESCRIPTION_MAX),
        guest_micros: posted.timestamp.and_then(micros),
    })
}

/// Converts seconds to microseconds, if they are a valid time.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the range is checked, and fractions of a microsecond are dropped"
)]
fn micros(seconds: f64) -> Option<i64> {
    let micros = seconds * 1e6;
    (0.0..1e17).contains(&micros).then_some(micros as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_event_of_cloud_init_is_read() {
        let start = br#"{"name": "modules-final/config-scripts-user", "description": "running config-scripts-user with frequency once-per-instance", "event_type": "start", "origin": "cloudinit", "timestamp": 1700000000.25}"#;
        let event = parse(start).unwrap();
        assert_eq!(event.name, "modules-final/config-scripts-user");
        assert_eq!(event.result, None);
        assert_eq!(event.guest_micros, Some(1_700_000_000_250_000));
        for (word, result) in [
            ("SUCCESS", ModuleResult::Success),
            ("WARN", ModuleResult::Warn),
            ("FAIL", ModuleResult::Fail),
        ] {
            let finish = format!(
                r#"{{"name": "modules-final", "description": "x", "event_type": "finish", "origin": "cloudinit", "timestamp": 1.0, "result": "{word}"}}"#
            );
            assert_eq!(parse(finish.as_bytes()).unwrap().result, Some(result));
        }
    }

    #[test]
    fn invalid_events_are_ignored() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"name": "x"}"#,
            r#"{"name": "", "event_type": "start"}"#,
            r#"{"name": "x", "event_type": "other"}"#,
            r#"{"name": "x", "event_type": "finish", "result": "MAYBE"}"#,
        ] {
            assert_eq!(parse(body.as_bytes()), None, "{body}");
        }
        let odd = parse(br#"{"name": "a\u001bb", "event_type": "start", "timestamp": -1e300}"#);
        let odd = odd.unwrap();
        assert_eq!((odd.name.as_str(), odd.guest_micros), ("a\u{fffd}b", None));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_a_bounded_event_or_none(
            name in ".{0,300}", description in ".{0,600}", time in any::<f64>(),
        ) {
            let body = serde_json::json!({"name": name, "event_type": "start", "description": description, "timestamp": time});
            if let Some(event) = parse(body.to_string().as_bytes()) {
                prop_assert!(event.name.chars().count() <= NAME_MAX);
                prop_assert!(event.description.chars().count() <= DESCRIPTION_MAX);
                prop_assert!(!event.name.chars().chain(event.description.chars()).any(char::is_control));
            }
        }
    }
}
