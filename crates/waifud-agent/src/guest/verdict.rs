//! What follows for an instance's cloud-init from all that was seen of its current boot: a pure function.
//!
//! Who is believed, best first:
//!
//! 1. the guest's own result, read by its agent. While the agent answers that cloud-init works, nothing older proves its
//!    end, and no call does;
//! 2. cloud-init's reporter: it speaks at every boot and of every module, and its last event comes after the result;
//! 3. the call at the end (`phone_home`), which cloud-init makes once for each instance-id, and which says nothing of
//!    the result. It counts where neither of the others speaks, or the reporter's last event was lost.
//!
//! Where none of them can come any more, the state is *unknown*, with the reason: nobody waits in vain.

use std::time::Duration;

use waifud_api::agent::AgentInstance;
use waifud_types::Timestamp;
use waifud_types::evidence::ModuleResult;
use waifud_types::spec::Unreported;
use waifud_types::status::{CloudInitState, CloudInitStatus, ReadyBy};
use waifud_types::template::Datasource;

use crate::control_link::record::Memory;
use crate::guest::boot_report::BootReport;
use crate::instance::rescue;
use crate::network::lan::identity;

/// A reporter that said nothing for so long after the call will not tell the end any more: the event was lost.
const LOST: Duration = Duration::from_mins(2);
/// Modules that are named as failed at most.
const ERRORS_MAX: usize = 10;
/// How much longer than [`Seen::patience`] a reporter may take for its first word: a guest's kernel boots before it.
const FIRST_WORD: u32 = 3;
/// How much longer than [`Seen::patience`] a call may take that was never made: packages are installed before it.
const CALL: u32 = 10;

/// Everything that was seen of one boot.
#[derive(Clone, Debug)]
pub(crate) struct Seen<'a> {
    /// What the guest's files said when its agent was last asked, and when that was; null where none answered then.
    pub agent: Option<(&'a CloudInitStatus, Timestamp)>,
    /// What cloud-init's reporter told.
    pub report: &'a BootReport,
    /// When it phoned home.
    pub call: Option<Timestamp>,
    /// Whether it asked for documents.
    pub asked: bool,
    /// What can be expected.
    pub expects: Expects,
    /// When the boot began; null when that is not known.
    pub since: Option<Timestamp>,
    /// Now.
    pub now: Timestamp,
    /// How long a guest that can't report may stay silent.
    pub patience: Duration,
}

/// What can be expected of a guest whose agent does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Expects {
    /// Why cloud-init's reporter does not speak; null when it should.
    pub no_report: Option<&'static str>,
    /// Whether the call is still to come.
    pub call: bool,
}

/// What follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Verdict {
    /// How far cloud-init is.
    pub cloud_init: CloudInitStatus,
    /// What proves its end; null while nothing does.
    pub ready_by: Option<ReadyBy>,
    /// The guest itself says that it works: what proved an end before is of an earlier boot.
    pub works: bool,
}

/// What an instance's guest can be expected to tell.
pub(crate) fn expects(want: &AgentInstance, memory: &Memory) -> Expects {
    let by_disk = memory.by_disk.is_some();
    let unreported = match &want.spec.user_data {
        Some(facts) if want.spec.rescue.is_none() => facts.unreported,
        _ => None,
    };
    let no_vendor_data = if identity(want, memory).is_none() {
        Some("none of its networks leads to the metadata service")
    } else if rescue::datasource(want) == Datasource::Ec2 && !by_disk {
        Some(
            "cloud-init's EC2 datasource reads no vendor-data, which would have it report to waifud",
        )
    } else {
        unreported
            .filter(|it| *it == Unreported::VendorDataDisabled)
            .map(Unreported::cause)
    };
    Expects {
        no_report: no_vendor_data.or(unreported.map(Unreported::cause)),
        call: no_vendor_data.is_none() && memory.called_with != Some(want.bundle.digest),
    }
}

/// Derives. See the module's text.
pub(crate) fn derive(seen: &Seen<'_>) -> Verdict {
    if let Some((found, at)) = seen.agent {
        let ended_since = seen.report.finished.is_some_and(|(end, _)| end > at);
        if found.state.is_final() {
            return Verdict {
                cloud_init: found.clone(),
                ready_by: Some(ReadyBy::GuestAgent),
                works: false,
            };
        }
        if found.state == CloudInitState::Running && !ended_since {
            let mut cloud_init = found.clone();
            add_failures(&mut cloud_init, seen.report);
            return Verdict {
                cloud_init,
                ready_by: None,
                works: true,
            };
        }
    }
    if let Some((_, result)) = seen.report.finished {
        return ended(seen.report, result, ReadyBy::Reporter);
    }
    if let Some(last) = seen.report.last {
        let silent_since = seen.call.map(|call| call.max(last));
        if silent_since.is_some_and(|at| passed(at, seen.now) >= LOST) {
            return ended(seen.report, ModuleResult::Success, ReadyBy::PhoneHome);
        }
        let mut cloud_init = in_state(CloudInitState::Running);
        add_failures(&mut cloud_init, seen.report);
        return not_yet(cloud_init);
    }
    if seen.call.is_some() {
        return Verdict {
            cloud_init: in_state(CloudInitState::Done),
            ready_by: Some(ReadyBy::PhoneHome),
            works: false,
        };
    }
    if let Some(because) = nothing_to_come(seen) {
        return not_yet(CloudInitStatus {
            unknown_because: Some(because),
            ..in_state(CloudInitState::Unknown)
        });
    }
    not_yet(in_state(if seen.asked {
        CloudInitState::Running
    } else {
        CloudInitState::Pending
    }))
}

/// Why waiting any longer is in vain, when it is.
fn nothing_to_come(seen: &Seen<'_>) -> Option<String> {
    let times = match seen.expects {
        Expects { call: true, .. } => CALL,
        Expects {
            no_report: None, ..
        } => FIRST_WORD,
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
        .unwrap_or("cloud-init has reported nothing in this boot");
    Some(format!("{because}, and no guest agent answers"))
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
        works: false,
    }
}

/// cloud-init's end as its reporter told it. The last stage's own result counts too: a module's event may be lost.
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
        works: false,
    }
}

fn add_failures(cloud_init: &mut CloudInitStatus, report: &BootReport) {
    let failed = report.failures().map(|name| format!("{name} failed"));
    let warned = report.warnings().map(|name| format!("{name} warned"));
    let room = ERRORS_MAX.saturating_sub(cloud_init.errors.len());
    cloud_init.errors.extend(failed.chain(warned).take(room));
}
