//! Derives cloud-init's state from everything that was observed of the current boot: a pure function.
//!
//! Sources, most trusted first:
//!
//! 1. The guest's own result file, read through the guest agent. While the agent shows that cloud-init is running, older
//!    reports and phone-home do not prove its end.
//! 2. cloud-init's reporter, which sends events at every boot and for every module; its last event follows the result.
//! 3. The last line of cloud-init on the guest's console, at every boot and without the result, and `phone_home` at the end
//!    of a boot, once per instance-id and without the result. They are used if neither of the others is available, or if
//!    the reporter's last event was lost.
//!
//! If none of them can be expected any more, the state is *unknown*, with the reason, so that clients do not wait for it.

use std::time::Duration;

use waifud_api::agent::AgentInstance;
use waifud_types::Timestamp;
use waifud_types::evidence::ModuleResult;
use waifud_types::spec::Unreported;
use waifud_types::status::{CloudInitState, CloudInitStatus, ReadyBy};
use waifud_types::template::Datasource;

use crate::control_link::record::Memory;
use crate::guest::boot_report::BootReport;
use crate::guest::console_end::ConsoleReport;
use crate::instance::rescue;
use crate::network::identity::identity;

/// If the reporter sends nothing for this long after `phone_home` or the last line on the console, its last event was lost.
const LOST: Duration = Duration::from_mins(2);
/// The maximum number of failed modules that are listed.
const ERRORS_MAX: usize = 10;
/// The multiple of [`Seen::patience`] within which the first event is expected: the guest's kernel boots before it.
const FIRST_EVENT_FACTOR: u32 = 3;
/// The multiple of [`Seen::patience`] within which `phone_home` or the last line on the console is expected: packages are
/// installed before it.
const PHONE_HOME_FACTOR: u32 = 10;

/// The fraction of [`Seen::patience`] after a login prompt within which a sign of cloud-init is expected. cloud-init writes to
/// the console and requests documents before that prompt.
const LOGIN_FRACTION: u32 = 2;

/// Everything that was observed of one boot.
#[derive(Clone, Debug)]
pub(crate) struct Seen<'a> {
    /// The guest's result files as last read through the agent, and when; `None` if no agent answered.
    pub agent: Option<(&'a CloudInitStatus, Timestamp)>,
    /// What cloud-init's reporter sent.
    pub report: &'a BootReport,
    /// What the guest's console shows.
    pub console: &'a ConsoleReport,
    /// When the guest phoned home.
    pub call: Option<Timestamp>,
    /// Whether the guest requested documents.
    pub asked: bool,
    pub expects: Expects,
    /// When the boot began; `None` if unknown.
    pub since: Option<Timestamp>,
    pub now: Timestamp,
    /// How long a guest without a reporter may stay silent before its state is unknown.
    pub patience: Duration,
}

/// What can be expected of a guest whose agent does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Expects {
    /// Why cloud-init's reporter sends nothing; `None` if it should.
    pub no_report: Option<&'static str>,
    /// Whether `phone_home` is still expected.
    pub call: bool,
    /// Whether the last line of cloud-init is expected on the console, if cloud-init writes to it.
    pub console: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Verdict {
    /// The state of cloud-init.
    pub cloud_init: CloudInitStatus,
    /// What proves that it has finished; `None` if nothing does.
    pub ready_by: Option<ReadyBy>,
    /// The guest itself shows that cloud-init is running: an earlier proof of its end belongs to an earlier boot.
    pub is_running: bool,
}

/// What the guest of an instance can be expected to report.
pub(crate) fn expects(want: &AgentInstance, memory: &Memory) -> Expects {
    let by_disk = memory.start.by_disk.is_some();
    let user_data = want.spec.user_data.as_ref();
    let user_data = user_data.filter(|_| want.spec.rescue.is_none());
    let unreported = user_data.and_then(|facts| facts.unreported);
    let no_vendor_data = if identity(want, memory).is_none() {
        Some("none of its networks reaches the metadata service")
    } else if rescue::datasource(want) == Datasource::Ec2 && !by_disk {
        Some(
            "cloud-init's EC2 datasource ignores vendor-data, which configures cloud-init to report to waifud",
        )
    } else {
        unreported
            .filter(|it| *it == Unreported::VendorDataDisabled)
            .map(Unreported::cause)
    };
    Expects {
        no_report: no_vendor_data.or(unreported.map(Unreported::cause)),
        call: no_vendor_data.is_none() && memory.called_with != Some(want.bundle.digest),
        console: !user_data.is_some_and(|facts| facts.replaces_final_message),
    }
}

/// Derives the state; see the module documentation.
pub(crate) fn derive(seen: &Seen<'_>) -> Verdict {
    if let Some((found, at)) = seen.agent {
        let ended_since = seen.report.finished.is_some_and(|(end, _)| end > at);
        if found.state.is_final() && is_fallback(found.datasource.as_deref()) {
            return nothing_applied(found.clone());
        }
        if found.state.is_final() {
            return Verdict {
                cloud_init: found.clone(),
                ready_by: Some(ReadyBy::GuestAgent),
                is_running: false,
            };
        }
        if found.state == CloudInitState::Running && !ended_since {
            let mut cloud_init = found.clone();
            add_failures(&mut cloud_init, seen.report);
            return Verdict {
                cloud_init,
                ready_by: None,
                is_running: true,
            };
        }
    }
    if let Some((_, result)) = seen.report.finished {
        return ended(seen.report, result, ReadyBy::Reporter);
    }
    if let Some(last) = seen.report.last {
        let ends = [
            (seen.console.finished, ReadyBy::Console),
            (seen.call, ReadyBy::PhoneHome),
        ];
        for (end, by) in ends {
            if end.is_some_and(|end| passed(end.max(last), seen.now) >= LOST) {
                return ended(seen.report, ModuleResult::Success, by);
            }
        }
        let mut cloud_init = in_state(CloudInitState::Running);
        add_failures(&mut cloud_init, seen.report);
        return not_yet(cloud_init);
    }
    if seen.console.finished.is_some() {
        if is_fallback(seen.console.datasource.as_deref()) {
            return nothing_applied(CloudInitStatus {
                datasource: seen.console.datasource.clone(),
                ..CloudInitStatus::default()
            });
        }
        return Verdict {
            cloud_init: CloudInitStatus {
                datasource: seen.console.datasource.clone(),
                ..in_state(CloudInitState::Done)
            },
            ready_by: Some(ReadyBy::Console),
            is_running: false,
        };
    }
    if seen.call.is_some() {
        return Verdict {
            cloud_init: in_state(CloudInitState::Done),
            ready_by: Some(ReadyBy::PhoneHome),
            is_running: false,
        };
    }
    if let Some(because) = no_report_expected(seen) {
        return not_yet(CloudInitStatus {
            unknown_because: Some(because),
            ..in_state(CloudInitState::Unknown)
        });
    }
    not_yet(in_state(if seen.asked || seen.console.began {
        CloudInitState::Running
    } else {
        CloudInitState::Pending
    }))
}

/// Whether this is the datasource that cloud-init falls back to when it finds no other.
fn is_fallback(datasource: Option<&str>) -> bool {
    datasource.is_some_and(|name| name.starts_with("DataSourceNone"))
}

/// cloud-init has ended and has applied nothing of the instance: the guest is not ready.
fn nothing_applied(mut cloud_init: CloudInitStatus) -> Verdict {
    cloud_init.state = CloudInitState::Error;
    cloud_init.errors.insert(
        0,
        "cloud-init used none of waifud's metadata and user-data, because it found no datasource (DataSourceNone)"
            .to_owned(),
    );
    cloud_init.errors.truncate(ERRORS_MAX);
    not_yet(cloud_init)
}

/// Why no further report can be expected, if so.
fn no_report_expected(seen: &Seen<'_>) -> Option<String> {
    let silent = !seen.asked && !seen.console.began;
    if let Some(login) = seen.console.login.filter(|_| silent)
        && passed(login, seen.now) >= seen.patience / LOGIN_FRACTION
    {
        return Some(
            "the console shows a login prompt, but cloud-init has neither written to the console nor requested its \
             documents; perhaps the image does not contain cloud-init"
                .to_owned(),
        );
    }
    let times = match seen.expects {
        Expects { console: true, .. } if seen.console.began => PHONE_HOME_FACTOR,
        Expects { call: true, .. } => PHONE_HOME_FACTOR,
        Expects {
            no_report: None, ..
        } => FIRST_EVENT_FACTOR,
        Expects {
            no_report: Some(_), ..
        } => 1,
    };
    let waited = passed(seen.since?, seen.now);
    if waited < seen.patience * times {
        return None;
    }
    let because = seen
        .expects
        .no_report
        .unwrap_or("cloud-init has not reported anything since this boot");
    Some(format!(
        "{because}, the guest agent does not answer, and the console does not show that cloud-init has finished"
    ))
}

fn passed(since: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(since).try_into().unwrap_or_default()
}

fn in_state(state: CloudInitState) -> CloudInitStatus {
    CloudInitStatus {
        state,
        ..CloudInitStatus::default()
    }
}

fn not_yet(cloud_init: CloudInitStatus) -> Verdict {
    Verdict {
        cloud_init,
        ready_by: None,
        is_running: false,
    }
}

/// The end of cloud-init according to its reporter. The result of the last stage is considered too, because the event of a
/// module may be lost.
fn ended(report: &BootReport, last: ModuleResult, by: ReadyBy) -> Verdict {
    let failed = last == ModuleResult::Fail || report.failures().next().is_some();
    let warned = last == ModuleResult::Warn || report.warnings().next().is_some();
    let mut cloud_init = in_state(if failed {
        CloudInitState::Error
    } else if warned {
        CloudInitState::Degraded
    } else {
        CloudInitState::Done
    });
    add_failures(&mut cloud_init, report);
    if failed && cloud_init.errors.is_empty() {
        cloud_init.errors.push("modules-final failed".to_owned());
    }
    Verdict {
        cloud_init,
        ready_by: Some(by),
        is_running: false,
    }
}

fn add_failures(cloud_init: &mut CloudInitStatus, report: &BootReport) {
    let failed = report.failures().map(|name| format!("{name} failed"));
    let warned = report.warnings().map(|name| format!("{name} warned"));
    let left = ERRORS_MAX.saturating_sub(cloud_init.errors.len());
    cloud_init.errors.extend(failed.chain(warned).take(left));
}
