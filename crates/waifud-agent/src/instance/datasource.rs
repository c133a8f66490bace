//! Which way a guest finds its documents at its next start: its template's, or a disk where that can't work.

use std::time::Duration;

use waifud_api::agent::AgentInstance;
use waifud_types::Digest;
use waifud_types::template::Datasource;

use crate::instance::rescue;
use crate::network::lan::identity;
use crate::shared::Shared;

/// How long the metadata service may be out of reach before guests are started with a disk instead. Long enough for
/// every restart and upgrade; a guest that boots without documents it asked for waits about as long.
const PATIENCE: Duration = Duration::from_mins(2);

/// Whether a guest can reach the metadata service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// As far as known.
    Served,
    /// It has no nic on a network on which the service knows guests apart.
    NoNetwork,
    /// The service or the tunnel to it has not been up for this long.
    Away(Duration),
}

/// What was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    /// How the guest is made to look.
    pub datasource: Datasource,
    /// Why it is not the template's; null when it is.
    pub because: Option<&'static str>,
}

/// What this process ensured of the disk with an instance's documents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Seeded {
    /// Nothing yet.
    #[default]
    Unknown,
    /// There is none.
    NoDisk,
    /// It holds the documents of this bundle.
    Disk(Digest),
}

impl Seeded {
    /// What the next start wants.
    pub fn wanted(want: &AgentInstance, by_disk: bool) -> Self {
        if by_disk {
            Self::Disk(want.bundle.digest)
        } else {
            Self::NoDisk
        }
    }
}

/// Chooses. A disk needs nothing of the network, and cloud-init looks for one wherever nothing else announces itself.
pub(crate) fn choose(template: Datasource, reach: Reach) -> Choice {
    let because = match reach {
        _ if !template.needs_metadata() => None,
        Reach::NoNetwork => Some("none of its networks leads to the metadata service"),
        Reach::Away(long) if long >= PATIENCE => {
            Some("the metadata service could not be reached before it was started")
        }
        Reach::Served | Reach::Away(_) => None,
    };
    Choice {
        datasource: because.map_or(template, |_| Datasource::Cidata),
        because,
    }
}

/// Chooses for an instance as things are.
pub(crate) fn of_instance(shared: &Shared, want: &AgentInstance) -> Choice {
    let known_by = identity(want, &shared.memory(want.id));
    let reach = match (known_by, shared.metadata.away()) {
        (None, _) => Reach::NoNetwork,
        (Some(_), Some(long)) => Reach::Away(long),
        (Some(_), None) => Reach::Served,
    };
    choose(rescue::datasource(want), reach)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_takes_the_place_of_a_service_that_cannot_be_asked() {
        for template in Datasource::ALL {
            for reach in [
                Reach::Served,
                Reach::NoNetwork,
                Reach::Away(PATIENCE / 2),
                Reach::Away(PATIENCE),
            ] {
                let chosen = choose(template, reach);
                let hopeless = matches!(reach, Reach::NoNetwork) || reach == Reach::Away(PATIENCE);
                let by_disk = template == Datasource::Cidata || hopeless;
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
