//! Reads what cloud-init leaves in `/run/cloud-init`: pure functions over text that comes from a guest.
//!
//! Shapes, as cloud-init itself writes them (`cloudinit/cmd/main.py`, `status_wrapper`): `result.json` appears when the
//! last stage has ended and holds `{"v1": {"datasource", "errors": []}}`; `status.json` is there from the first stage on
//! and holds `{"v1": {"datasource", "stage", "init": {"errors", "start", "finished", ...}, ...}}`, since 23.4 with
//! `recoverable_errors` per stage, which make the whole `degraded`. `/run/cloud-init` is in memory: each boot begins
//! with none of them.

use serde_json::Value;
use waifud_types::status::{CloudInitState, CloudInitStatus};

/// Errors that are kept at most, and characters of each.
const ERRORS_MAX: usize = 10;
const TEXT_MAX: usize = 500;

/// What was found in the guest. `None`: the file is not there.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// `result.json`.
    pub result: Option<String>,
    /// `status.json`.
    pub status: Option<String>,
    /// `.instance-id`.
    pub instance_id: Option<String>,
    /// Whether `disabled` is there.
    pub disabled: bool,
}

/// What the files say. Texts are shortened and stripped of control characters, and stay data.
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

/// What cloud-init logs where an event of its reporter could not be posted, as at every reboot before the network is up
/// (since 23.4 counted as a recoverable error). It says nothing of what the user asked for.
const OF_THE_REPORTER: [&str; 2] = [
    "Failed posting event",
    "Multiple consecutive failures in WebHookHandler",
];

fn texts(list: Option<&Value>, into: &mut Vec<String>) {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    let of_the_user = |item: &&str| !OF_THE_REPORTER.iter().any(|start| item.starts_with(start));
    let items = items.filter_map(Value::as_str).filter(of_the_user);
    for item in items.map(text) {
        if into.len() < ERRORS_MAX && !into.contains(&item) {
            into.push(item);
        }
    }
}

/// `{"WARNING": ["…"], "DEPRECATED": ["…"]}`: every kind counts, as in `cloud-init status`.
fn recovered(kinds: Option<&Value>, into: &mut Vec<String>) {
    let kinds = kinds.and_then(Value::as_object).into_iter().flatten();
    for (_, list) in kinds {
        texts(Some(list), into);
    }
}

/// A guest's text, bounded, on one line.
pub(crate) fn text(raw: &str) -> String {
    raw.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(TEXT_MAX)
        .collect()
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
    fn version_22_done() {
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
    fn complaints_of_our_own_reporter_make_nothing_degraded() {
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
    fn errors_of_the_result_and_of_stages_are_told_once() {
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
    fn without_a_result_it_runs_or_has_not_begun_or_is_off() {
        let running = r#"{"v1": {"datasource": null, "stage": "init", "init": {"errors": [], "start": 1.0, "finished": null}}}"#;
        assert_eq!(of(None, Some(running)).state, CloudInitState::Running);
        assert_eq!(of(None, None).state, CloudInitState::Pending);
        let off = parse(&Files {
            disabled: true,
            ..Files::default()
        });
        assert_eq!(off.state, CloudInitState::Disabled);
        // A file that is being written counts as not there.
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

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_claim_the_end(status in ".{0,200}", id in ".{0,50}") {
            let seen = parse(&Files { status: Some(status), instance_id: Some(id), ..Files::default() });
            prop_assert!(!seen.state.is_final());
        }
    }
}
