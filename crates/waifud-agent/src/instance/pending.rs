//! Desired changes that a running guest gets only at its next start.

use waifud_api::agent::AgentInstance;
use waifud_types::Digest;

use crate::control_link::record::Memory;
use crate::instance::planner::Observed;
use crate::instance::restart_policy;

/// The documents that the guest has read, or that were served at its start. A guest that reboots requests its user-data
/// again and then has the current documents. A running guest without a recorded value is assumed to be up to date.
pub fn documents(
    memory: &Memory,
    want: &AgentInstance,
    seen: &Observed,
    asked_for: Option<Digest>,
) -> Option<Digest> {
    let wanted = want.bundle.digest;
    if !seen.is_on() {
        return memory.documents;
    }
    if asked_for == Some(wanted) {
        return Some(wanted);
    }
    memory.documents.or(Some(wanted))
}

/// The fields of the spec that take effect at the next start of a running guest.
pub fn restart_needed(memory: &Memory, want: &AgentInstance) -> Vec<String> {
    let mut parts = restart_policy::restart_needed(memory, want);
    // During a rescue other documents are served without a change by the user, and its end is a new start anyway.
    let own_system = want.spec.rescue.is_none();
    if own_system
        && memory
            .documents
            .is_some_and(|has| has != want.bundle.digest)
    {
        parts.push("user_data".to_owned());
    }
    parts
}

#[cfg(test)]
mod tests {
    use waifud_hypervisor::DomainState;

    use super::*;
    use crate::fake::sample_instance;

    fn on() -> Observed {
        Observed {
            domain: Some(DomainState::Running),
            ..Observed::default()
        }
    }

    fn digest(byte: char) -> Digest {
        format!("sha256:{}", byte.to_string().repeat(64))
            .parse()
            .unwrap()
    }

    fn having(documents: Option<Digest>) -> Memory {
        Memory {
            documents,
            ..Memory::default()
        }
    }

    #[test]
    fn new_documents_take_effect_at_the_next_start_or_when_the_guest_requests_them() {
        let mut want = sample_instance("web");
        want.bundle.digest = digest('b');
        let memory = having(Some(digest('a')));
        assert_eq!(documents(&memory, &want, &on(), None), Some(digest('a')));
        assert_eq!(restart_needed(&memory, &want), ["user_data"]);
        let mut rescued = want.clone();
        rescued.spec.rescue = Some(waifud_types::RescueSpec {
            ssh_keys: Vec::new(),
            template: "rescue".parse().unwrap(),
            image: digest('c'),
            datasource: want.datasource,
            firmware: want.firmware,
        });
        assert!(restart_needed(&memory, &rescued).is_empty());
        let asked_before = Some(digest('a'));
        assert_eq!(
            documents(&memory, &want, &on(), asked_before),
            Some(digest('a'))
        );
        let asked = documents(&memory, &want, &on(), Some(digest('b')));
        assert!(restart_needed(&having(asked), &want).is_empty());
    }

    #[test]
    fn a_running_guest_without_a_record_is_assumed_to_be_up_to_date() {
        let want = sample_instance("web");
        let memory = having(documents(&having(None), &want, &on(), None));
        assert_eq!(memory.documents, Some(want.bundle.digest));
        assert!(restart_needed(&memory, &want).is_empty());
        let off = Observed::default();
        assert_eq!(documents(&having(None), &want, &off, None), None);
    }
}
