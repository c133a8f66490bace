//! What `why` says of a guest's cloud-init: how it ended, what in the user-data that was, and what a reboot runs again.

use waifud_api::Instance;
use waifud_types::InstanceState;
use waifud_types::evidence::{GuestEvidence, ModuleResult};
use waifud_types::status::{CloudInitState, InstanceStatus};

/// What there is to say of a running guest's cloud-init beyond ready or not; `None` when that says it.
pub(super) fn summary(status: &InstanceStatus, long: &str) -> Option<String> {
    let cloud_init = &status.cloud_init;
    match cloud_init.state {
        CloudInitState::Error => Some(format!(
            "running; cloud-init finished with errors {long} ago"
        )),
        CloudInitState::Degraded => Some(format!(
            "running; cloud-init finished with warnings {long} ago"
        )),
        CloudInitState::Disabled => {
            Some("running; cloud-init is switched off in the guest".to_owned())
        }
        CloudInitState::Unknown => {
            let because = cloud_init.unknown_because.as_deref()?;
            Some(format!(
                "running; whether cloud-init has finished cannot be known: {because}"
            ))
        }
        CloudInitState::Pending | CloudInitState::Running | CloudInitState::Done => None,
    }
}

/// What to do about it.
pub(super) fn hint(
    instance: &Instance,
    evidence: Option<&GuestEvidence>,
    user_data: Option<&str>,
) -> Option<String> {
    let status = &instance.status;
    if status.state != InstanceState::Running {
        return None;
    }
    let name = &instance.name;
    match status.cloud_init.state {
        CloudInitState::Error | CloudInitState::Degraded => {
            let cause = evidence
                .and_then(|evidence| failed_key(evidence, user_data?))
                .map_or_else(String::new, |cause| format!("{cause}; "));
            Some(format!(
                "{cause}its output: waifuctl logs {name} --cloud-init. A reboot runs only bootcmd and per-boot scripts \
                 again; waifuctl edit {name} --re-run runs all of it"
            ))
        }
        CloudInitState::Unknown => Some(format!(
            "a guest agent can tell: install qemu-guest-agent in the guest; until then look at its console: \
             waifuctl console {name}"
        )),
        _ => None,
    }
}

/// The first module that failed, and the line of the user-data that it carries out.
fn failed_key(evidence: &GuestEvidence, user_data: &str) -> Option<String> {
    let mut failed = evidence
        .modules
        .iter()
        .filter(|module| module.result == Some(ModuleResult::Fail))
        .filter_map(|module| module.name.split_once('/'));
    failed.find_map(|(_, module)| {
        let key = waifud_cloudinit::key_of_module(user_data, module)?;
        Some(format!(
            "{module} failed: it carries out {} (line {} of the user-data)",
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
    fn a_failed_module_is_tied_to_its_line_and_others_to_none() {
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
            "scripts-user failed: it carries out runcmd (line 3 of the user-data)"
        );
        assert_eq!(failed_key(&evidence, "#cloud-config\npackages: []\n"), None);
    }
}
