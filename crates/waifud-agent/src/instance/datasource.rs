//! The datasource of a guest's next start: its template's, or a disk if that cannot work.

use std::time::Duration;

use waifud_api::agent::AgentInstance;
use waifud_types::Digest;
use waifud_types::template::Datasource;

/// Whether a guest can reach the metadata service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// Yes, as far as known.
    Served,
    /// It has no nic on a network where the service can identify guests.
    NoNetwork,
    /// The service or the tunnel to it has been down for this long.
    Unreachable(Duration),
}

/// The chosen datasource.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    pub datasource: Datasource,
    /// Why it differs from the template's; `None` if it does not.
    pub because: Option<&'static str>,
}

/// What this process has ensured about the disk with an instance's documents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Seeded {
    #[default]
    Unknown,
    /// The disk does not exist.
    NoDisk,
    /// The disk contains the documents of this bundle.
    Disk(Digest),
}

impl Seeded {
    /// What the next start needs.
    pub fn wanted(want: &AgentInstance, by_disk: bool) -> Self {
        if by_disk {
            Self::Disk(want.bundle.digest)
        } else {
            Self::NoDisk
        }
    }
}

/// A disk needs no network, and cloud-init looks for one if no other datasource is found. `patience` is how long the service
/// may be unreachable before a disk is used.
pub(crate) fn choose(template: Datasource, reach: Reach, patience: Duration) -> Choice {
    let because = match reach {
        _ if !template.needs_metadata() => None,
        Reach::NoNetwork => Some("none of its networks reaches the metadata service"),
        Reach::Unreachable(long) if long >= patience => {
            Some("the metadata service was unreachable when the guest started")
        }
        Reach::Served | Reach::Unreachable(_) => None,
    };
    Choice {
        datasource: because.map_or(template, |_| Datasource::Cidata),
        because,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Timing;

    #[test]
    fn a_disk_replaces_a_service_that_was_unreachable_for_two_minutes() {
        let patience = Timing::default().metadata_patience;
        let unreachable_for = |secs| Reach::Unreachable(Duration::from_secs(secs));
        for template in Datasource::ALL {
            for reach in [
                Reach::Served,
                Reach::NoNetwork,
                unreachable_for(119),
                unreachable_for(120),
            ] {
                let chosen = choose(template, reach, patience);
                let unreachable = reach == Reach::NoNetwork || reach == unreachable_for(120);
                let by_disk = template == Datasource::Cidata || unreachable;
                assert_eq!(
                    chosen.datasource == Datasource::Cidata,
                    by_disk,
                    "{template:?} {reach:?}"
                );
                assert_eq!(chosen.because.is_some(), chosen.datasource != template);
            }
        }
    }
}
