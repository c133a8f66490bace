//! Parses cloud-init's files in `/run/cloud-init`: pure functions over text from a guest.
//!
//! The format is that of cloud-init (`cloudinit/cmd/main.py`, `status_wrapper`). `result.json` is written when the last
//! stage has ended: `{"v1": {"datasource", "errors": []}}`. `status.json` exists from the first stage on: `{"v1":
//! {"datasource", "stage", "init": {"errors", "start", "finished", ...}, ...}}`. Since 23.4 each stage has
//! `recoverable_errors`, which make the state `degraded`. `/run/cloud-init` is in memory and empty at each boot.

use serde_json::Value;
use waifud_types::status::{CloudInitState, CloudInitStatus};

/// The maximum number of errors, and of characters in each.
const ERRORS_MAX: usize = 10;
const TEXT_MAX: usize = 500;

/// The files of a guest. `None` means that a file does not exist.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// `result.json`.
    pub result: Option<String>,
    /// `status.json`.
    pub status: Option<String>,
    /// `.instance-id`.
    pub instance_id: Option<String>,
    /// Whether `disabled` exists.
    pub disabled: bool,
}

/// Parses the files. Texts are shortened and stripped of control characters.
pub fn parse(files: &Files) -> CloudInitStatus {
    let result = files.result.as_deref().and_then(v1);
    let status = files.status.as_deref().and_then(v1);
    let mut errors = Vec::new();
    let mut recoverable = Vec::new();
    if let Some(result) = &result {
        texts(result.get("errors"), &mut errors);
        recovered(result.get("recoverable_errors"), &mut recoverable);
    }
    for stage in status.iter().flat_map(stages) {
        texts(stage.get("errors"), &mut errors);
        recovered(stage.get("recoverable_errors"), &mut recoverable);
    }
    let state = match (&result, &status) {
        (None, None) if files.disabled => CloudInitState::Disabled,
        (None, None) => CloudInitState::Pending,
        (None, Some(_)) => CloudInitState::Running,
        (Some(_), _) if !errors.is_empty() => CloudInitState::Error,
        (Some(_), _) if !recoverable.is_empty() => CloudInitState::Degraded,
        (Some(_), _) => CloudInitState::Done,
    };
    let datasource = [&result, &status]
        .into_iter()
        .flatten()
        .find_map(|v1| v1.get("datasource").and_then(Value::as_str))
        .map(text);
    errors.append(&mut recoverable);
    errors.dedup();
    errors.truncate(ERRORS_MAX);
    CloudInitStatus {
        state,
        instance_id: files
            .instance_id
            .as_deref()
            .map(text)
            .filter(|id| !id.is_empty()),
        datasource,
        errors,
        unknown_because: None,
    }
}

fn v1(json: &str) -> Option<Value> {
    let mut value: Value = serde_json::from_str(json).ok()?;
    value
        .get_mut("v1")
        .map(Value::take)
        .filter(Value::is_object)
}

fn stages(v1: &Value) -> impl Iterator<Item = &Value> {
    v1.as_object()
        .into_iter()
        .flat_map(serde_json::Map::values)
        .filter(|value| value.is_object())
}

/// What cloud-init logs if its reporter cannot post an event, which happens at every reboot before the network is up. Since
/// 23.4 it counts as a recoverable error. It is unrelated to the user's configuration and is ignored.
const REPORTER_ERRORS: [&str; 2] = [
    "Failed posting event",
    "Multiple consecutive failures in WebHookHandler",
];

fn texts(list: Option<&Value>, into: &mut Vec<String>) {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    let is_relevant = |item: &&str| !REPORTER_ERRORS.iter().any(|start| item.starts_with(start));
    let items = items.filter_map(Value::as_str).filter(is_relevant);
    for item in items.map(text) {
        if into.len() < ERRORS_MAX && !into.contains(&item) {
            into.push(item);
        }
    }
}

/// `{"WARNING": ["…"], "DEPRECATED": ["…"]}`: every kind is included, as in `cloud-init status`.
fn recovered(kinds: Option<&Value>, into: &mut Vec<String>) {
    let kinds = kinds.and_then(Value::as_object).into_iter().flatten();
    for (_, list) in kinds {
        texts(Some(list), into);
    }
}

/// Text from a guest, shortened and on one line.
pub(crate) fn text(raw: &str) -> String {
    waifud_kit::terminal::one_line(raw, TEXT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(result: Option<&str>, status: Option<&str>) -> CloudInitStatus {
        parse(&Files {
            result: result.map(str::to_owned),
            status: status.map(str::to_owned),
            ..Files::default()
        })
    }

    #[test]
    fn the_files_of_version_22_are_parsed_as_done() {
        let seen = parse(&Files {
            result: Some(
                r#"{"v1": {"datasource": "DataSourceOpenStackLocal [net,ver=2]", "errors": []}}"#
                    .to_owned(),
            ),
            status: Some(
                r#"{"v1": {"datasource": "DataSourceOpenStackLocal [net,ver=2]",
                    "init": {"errors": [], "finished": 1.5, "start": 1.0},
                    "modules-final": {"errors": [], "finished": 9.0, "start": 8.0}, "stage": null}}"#
                    .to_owned(),
            ),
            instance_id: Some("i-0123\n".to_owned()),
            disabled: false,
        });
        assert_eq!(seen.state, CloudInitState::Done);
        assert_eq!(
            seen.datasource.as_deref(),
            Some("DataSourceOpenStackLocal [net,ver=2]")
        );
        assert_eq!(seen.instance_id.as_deref(), Some("i-0123"));
        assert!(seen.errors.is_empty());
    }

    #[test]
    fn version_25_with_recoverable_errors_is_degraded() {
        let seen = of(
            Some(r#"{"v1": {"datasource": "DataSourceOpenStack", "errors": []}}"#),
            Some(
                r#"{"v1": {"datasource": "DataSourceOpenStack", "detail": null, "stage": null,
                    "init": {"errors": [], "recoverable_errors": {"WARNING": ["bad key"]}, "finished": 2.0, "start": 1.0},
                    "init-local": {"errors": [], "recoverable_errors": {"DEPRECATED": ["old key"]}, "finished": 2.0, "start": 1.0},
                    "modules-final": {"errors": [], "recoverable_errors": {}, "finished": 9.0, "start": 8.0}}}"#,
            ),
        );
        assert_eq!(seen.state, CloudInitState::Degraded);
        assert_eq!(seen.errors.len(), 2, "{:?}", seen.errors);
    }

    #[test]
    fn errors_of_our_own_reporter_do_not_make_the_state_degraded() {
        let status = |more: &str| {
            format!(
                r#"{{"v1": {{"datasource": "X", "stage": null, "init-local": {{"errors": [], "recoverable_errors": {{"WARNING":
                    ["Failed posting event: {{}}. This was caused by: no route", "Multiple consecutive failures in WebHookHandler. Cancelling all queued events."{more}]}}}}}}}}"#
            )
        };
        let result = Some(r#"{"v1": {"datasource": "X", "errors": []}}"#);
        let seen = of(result, Some(&status("")));
        assert_eq!((seen.state, seen.errors.len()), (CloudInitState::Done, 0));
        let seen = of(result, Some(&status(r#", "bad key""#)));
        assert_eq!(seen.state, CloudInitState::Degraded);
        assert_eq!(seen.errors, ["bad key"]);
    }

    #[test]
    fn errors_of_the_result_and_of_stages_are_listed_once() {
        let seen = of(
            Some(r#"{"v1": {"datasource": "X", "errors": ["('scripts-user', boom)"]}}"#),
            Some(
                r#"{"v1": {"datasource": "X", "modules-final": {"errors": ["('scripts-user', boom)"]}, "stage": null}}"#,
            ),
        );
        assert_eq!(seen.state, CloudInitState::Error);
        assert_eq!(seen.errors, ["('scripts-user', boom)"]);
    }

    #[test]
    fn without_a_result_cloud_init_is_running_pending_or_disabled() {
        let running = r#"{"v1": {"datasource": null, "stage": "init", "init": {"errors": [], "start": 1.0, "finished": null}}}"#;
        assert_eq!(of(None, Some(running)).state, CloudInitState::Running);
        assert_eq!(of(None, None).state, CloudInitState::Pending);
        let off = parse(&Files {
            disabled: true,
            ..Files::default()
        });
        assert_eq!(off.state, CloudInitState::Disabled);
        // A partly written file counts as missing.
        assert_eq!(of(Some("{\"v1\": {"), None).state, CloudInitState::Pending);
    }

    #[test]
    fn a_guests_text_is_bounded_and_without_control_characters() {
        let long = format!(
            r#"{{"v1": {{"datasource": "a\u001b[31m", "errors": {}}}}}"#,
            serde_json::to_string(&vec!["x".repeat(10_000); 100]).unwrap()
        );
        let seen = of(Some(&long), None);
        assert_eq!(seen.datasource.as_deref(), Some("a [31m"));
        assert_eq!(seen.errors.len(), 1);
        assert_eq!(seen.errors[0].len(), TEXT_MAX);
    }

    const RESULT: &str =
        r#"{"v1": {"datasource": "DataSourceNoCloud [seed=/dev/sr0]", "errors": ["one", "two"]}}"#;
    const STATUS: &str = r#"{"v1": {"datasource": "DataSourceNoCloud", "stage": "init", "init": {"errors": ["three"],
        "recoverable_errors": {"WARNING": ["four"]}, "start": 1.0, "finished": null}}}"#;

    /// Any text, or a file as it is, cut, or with some characters replaced.
    fn damaged(file: &'static str) -> impl Strategy<Value = String> {
        let length = file.len();
        let changes = proptest::collection::vec((0..length, any::<char>()), 0..4);
        let rewritten = changes.prop_map(move |changes| {
            let mut characters: Vec<char> = file.chars().collect();
            for (at, character) in changes {
                characters[at] = character;
            }
            characters.into_iter().collect::<String>()
        });
        let cut = (0..=length).prop_map(move |at| file[..at].to_owned());
        prop_oneof![".{0,200}", cut, rewritten]
    }

    proptest! {
        #[test]
        fn only_a_complete_result_is_an_end(
            result in damaged(RESULT), status in damaged(STATUS), id in ".{0,50}",
        ) {
            let complete = serde_json::from_str::<Value>(&result)
                .is_ok_and(|value| value["v1"].is_object());
            let files = Files {
                result: Some(result),
                status: Some(status),
                instance_id: Some(id),
                disabled: false,
            };
            let seen = parse(&files);
            prop_assert_eq!(seen.state.is_final(), complete, "{:?}", files);
            prop_assert!(seen.errors.len() <= ERRORS_MAX);
            let texts = seen.errors.iter().chain(&seen.datasource).chain(&seen.instance_id);
            for text in texts {
                prop_assert!(text.chars().count() <= TEXT_MAX, "{}", text);
                prop_assert!(!text.contains(char::is_control), "{:?}", text);
            }
        }
    }
}
