//! What guests did with their documents, as the metadata service observed it.

use std::collections::BTreeMap;

use waifud_api::metadatad::{Observation, Observed};
use waifud_types::{Digest, InstanceId, Timestamp};

use crate::guest::boot_report::BootReport;
use crate::guest::cloud_init;
use crate::guest::requests::Requests;

/// Characters of a requested path that are kept.
const PATH_MAX: usize = 120;

/// What one guest did with its documents since metadatad's process began.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Evidence {
    /// Requests that were answered with success.
    pub served: u64,
    /// Other requests.
    pub refused: u64,
    /// The last request: path (chosen by the guest, shortened), status, time.
    pub last: Option<(String, u16, Timestamp)>,
    /// The bundle whose user-data path the guest requested last, whether or not the bundle has user-data.
    pub asked_for: Option<Digest>,
    /// The last phone-home: time, and the instance-id that the guest reported.
    pub phoned_home: Option<(Timestamp, Option<String>)>,
    /// Distinct requests since the guest's start or since this process started. Kept when metadatad restarts.
    pub requests: Requests,
    /// What cloud-init's reporter sent in the current boot. Kept when metadatad restarts.
    pub report: BootReport,
    /// When the current boot began, as far as known. Earlier reports belong to another boot.
    pub boot: Option<Timestamp>,
    /// When the reporter showed that the guest booted again.
    pub booted_again: Option<Timestamp>,
}

impl Evidence {
    /// The guest starts: earlier requests and reports belong to another boot.
    fn begin_boot(&mut self, now: Timestamp) {
        self.requests = Requests::default();
        self.report = BootReport::default();
        self.boot = Some(now);
        self.booted_again = None;
    }

    /// Keeps only what outlives metadatad's process.
    fn forget_process(&mut self) {
        *self = Self {
            requests: std::mem::take(&mut self.requests),
            report: std::mem::take(&mut self.report),
            boot: self.boot,
            booted_again: self.booted_again,
            ..Self::default()
        };
    }

    /// `held` is the bundle that metadatad holds for the guest, and since when.
    fn record(&mut self, observation: &Observation, held: Option<(Digest, Timestamp)>) {
        match &observation.what {
            Observed::Request { path, status } => {
                if (200..300).contains(status) {
                    self.served += 1;
                } else {
                    self.refused += 1;
                }
                if let Some((digest, since)) = held
                    && since <= observation.at
                    && (path.ends_with("user_data") || path.ends_with("user-data"))
                {
                    self.asked_for = Some(digest);
                }
                let path: String = cloud_init::text(path).chars().take(PATH_MAX).collect();
                self.requests.add(path.clone(), *status, observation.at);
                self.last = Some((path, *status, observation.at));
            }
            Observed::PhoneHome { instance_id, .. } => {
                let id = instance_id.as_deref().map(cloud_init::text);
                self.phoned_home = Some((observation.at, id));
            }
            Observed::CloudInit(event) => {
                let of_this_boot = self.boot.is_none_or(|boot| observation.at >= boot);
                if of_this_boot && self.report.add(event, observation.at) {
                    self.booted_again = Some(observation.at);
                }
            }
        }
    }
}

/// The evidence of every guest.
#[derive(Debug, Default)]
pub(super) struct EvidenceStore(BTreeMap<InstanceId, Evidence>);

impl EvidenceStore {
    pub fn get(&self, id: InstanceId) -> Evidence {
        self.0.get(&id).cloned().unwrap_or_default()
    }

    /// The cloud-init module that runs in the guest, according to its reporter.
    pub fn running_module(&self, id: InstanceId) -> Option<String> {
        let running = self.0.get(&id)?.report.running()?;
        Some(running.name.clone())
    }

    pub fn begin_boot(&mut self, id: InstanceId, now: Timestamp) {
        if let Some(evidence) = self.0.get_mut(&id) {
            evidence.begin_boot(now);
        }
    }

    /// metadatad was restarted.
    pub fn forget_process(&mut self) {
        self.0.values_mut().for_each(Evidence::forget_process);
    }

    pub fn record(&mut self, observation: &Observation, held: Option<(Digest, Timestamp)>) {
        let evidence = self.0.entry(observation.instance).or_default();
        evidence.record(observation, held);
    }

    pub fn remove(&mut self, id: InstanceId) {
        self.0.remove(&id);
    }

    pub fn retain(&mut self, keep: impl Fn(&InstanceId) -> bool) {
        self.0.retain(|id, _| keep(id));
    }
}
