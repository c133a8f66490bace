//! The part of `why` about cloud-init: its result, the line of the user-data that failed, and what a reboot runs again.

use waifud_api::Instance;
use waifud_api::hint::{Hint, HintAction, HintKind};
use waifud_types::InstanceState;
use waifud_types::evidence::{GuestEvidence, ModuleResult};
use waifud_types::status::{CloudInitState, InstanceStatus};

/// The summary for a running guest; `None` if ready or not ready is enough.
pub(super) fn summary(status: &InstanceStatus, long: &str) -> Option<String> {
    let cloud_init = &status.cloud_init;
    match cloud_init.state {
        CloudInitState::Error => Some(format!(
            "running; cloud-init finished with errors {long} ago"
        )),
        CloudInitState::Degraded => Some(format!(
            "running; cloud-init finished with warnings {long} ago"
        )),
        CloudInitState::Disabled => Some("running; cloud-init is disabled in the guest".to_owned()),
        CloudInitState::Unknown => {
            let because = cloud_init.unknown_because.as_deref()?;
            Some(format!(
                "running; it is unknown whether cloud-init has finished: {because}"
            ))
        }
        CloudInitState::Pending | CloudInitState::Running | CloudInitState::Done => None,
    }
}

/// The hints for a running guest.
pub(super) fn hints(
    instance: &Instance,
    evidence: Option<&GuestEvidence>,
    user_data: Option<&str>,
) -> Vec<Hint> {
    let status = &instance.status;
    if status.state != InstanceState::Running {
        return Vec::new();
    }
    let on = |action: &HintAction| Hint::on(action, HintKind::Instance, instance.name.as_str());
    match status.cloud_init.state {
        CloudInitState::Error | CloudInitState::Degraded => {
            let cause = evidence.and_then(|evidence| failed_key(evidence, user_data?));
            let mut hints: Vec<_> = cause.map(Hint::advice).into_iter().collect();
            hints.extend([
                on(&HintAction::ReadCloudInitLog),
                on(&HintAction::ReRunCloudInit),
            ]);
            hints
        }
        CloudInitState::Unknown => vec![
            on(&HintAction::InstallGuestAgent),
            on(&HintAction::OpenConsole),
        ],
        _ => Vec::new(),
    }
}

/// The first failed module, and the line of the user-data that it runs.
fn failed_key(evidence: &GuestEvidence, user_data: &str) -> Option<String> {
    let mut failed = evidence
        .modules
        .iter()
        .filter(|module| module.result == Some(ModuleResult::Fail))
        .filter_map(|module| module.name.split_once('/'));
    failed.find_map(|(_, module)| {
        let key = waifud_cloudinit::key_of_module(user_data, module)?;
        Some(format!(
            "{module} failed; it runs {} (line {} of the user-data)",
            key.key, key.line
        ))
    })
}

#[cfg(test)]
mod tests {
    use waifud_types::Timestamp;
    use waifud_types::evidence::ModuleSeen;

    use super::*;

    #[test]
    fn a_failed_module_names_its_line_of_the_user_data() {
        let module = |name: &str, result| ModuleSeen {
            name: name.to_owned(),
            at: Timestamp::UNIX_EPOCH,
            result: Some(result),
            took_ms: Some(1),
        };
        let evidence = GuestEvidence {
            modules: vec![
                module("init-local/search-OpenStackLocal", ModuleResult::Fail),
                module("modules-config/runcmd", ModuleResult::Success),
                module("modules-final/scripts-user", ModuleResult::Fail),
            ],
            ..GuestEvidence::default()
        };
        let user_data = "#cloud-config\npackages: [htop]\nruncmd:\n- [false]\n";
        assert_eq!(
            failed_key(&evidence, user_data).unwrap(),
            "scripts-user failed; it runs runcmd (line 3 of the user-data)"
        );
        assert_eq!(failed_key(&evidence, "#cloud-config\npackages: []\n"), None);
    }
}
