//! `why`: what an instance waits for, how it got there, and what to do.

use jiff::SignedDuration;
use waifud_api::{Instance, PlacementVerdict, Why};
use waifud_store::NodeRow;
use waifud_types::event::Event;
use waifud_types::evidence::GuestEvidence;
use waifud_types::status::StoppedBy;
use waifud_types::{ByteSize, InstanceState, Timestamp};

use super::find;
use crate::network::networks::lacks_a_bridge;
use crate::placement::PlacementRequest;
use crate::placement::place::{group_members, verdicts};
use crate::{Control, ControlError};

/// After this time, a guest that is not ready gets a hint to look at its console. The slowest boot of an emulated cloud
/// image takes half of it.
const PATIENCE: SignedDuration = SignedDuration::from_mins(3);

/// The maximum number of events in the timeline.
const TIMELINE: u32 = 100;

impl Control {
    /// Explains the state of an instance.
    pub async fn why(&self, name_or_id: &str) -> Result<Why, ControlError> {
        let wanted = name_or_id.to_owned();
        let (row, placement, timeline, largest, node, user_data) = self
            .store()
            .read(move |tx| {
                let row = find(&tx, &wanted)?;
                let mut placement = row.placement.clone();
                let mut largest = None;
                if row.node.is_none() {
                    let capacities = tx.node_capacities()?;
                    let bridges = tx.bridges()?;
                    let request = PlacementRequest {
                        spec: &row.spec,
                        arch: &row.arch,
                        bridges: &bridges,
                        group_members: &group_members(&tx, &row.spec)?,
                    };
                    placement = verdicts(&tx, &request, &capacities)?;
                    largest = capacities
                        .iter()
                        .filter(|capacity| capacity.node.reachable && !capacity.node.cordoned)
                        .map(|capacity| {
                            let total = capacity.node.facts.capacity.memory_bytes.bytes();
                            ByteSize(
                                total.saturating_sub(capacity.node.promised.memory_bytes.bytes()),
                            )
                        })
                        .max();
                }
                let timeline = tx.newest_events_of(&row.id.to_string(), TIMELINE)?;
                let node = row.node.map(|node| tx.node(node)).transpose()?.flatten();
                let user_data = tx.user_data(row.id)?;
                Ok::<_, ControlError>((row, placement, timeline, largest, node, user_data))
            })
            .await?;
        let instance = self.instance_view(row);
        let since = since(&instance, &timeline);
        let evidence = self.instance_progress().evidence(instance.id);
        let now = self.now();
        let unchanged_for = now.duration_since(since);
        Ok(Why {
            summary: summary(&instance, evidence.as_ref(), since, now),
            hint: node
                .as_ref()
                .filter(|_| !instance.status.ready)
                .and_then(|node| {
                    hint_after_restore(&instance, node).or_else(|| accepts_nothing_new(node))
                })
                .or_else(|| {
                    let user_data = user_data.as_ref().map(|text| text.expose().as_str());
                    super::why_cloud_init::hint(&instance, evidence.as_ref(), user_data)
                })
                .or_else(|| hint(&instance, &placement, largest, unchanged_for)),
            instance,
            placement,
            timeline,
            evidence,
        })
    }
}

/// Why the node accepts nothing new, if it reported a reason.
fn accepts_nothing_new(node: &NodeRow) -> Option<String> {
    let conditions = node.facts.conditions.iter();
    conditions
        .filter(|it| it.kind == "state-dir" && !it.ok && it.reason != "low")
        .map(|it| format!("{}: {}", node.name, it.message))
        .next()
}

/// Since when the instance has been in its state. A change of its spec does not count.
fn since(instance: &Instance, timeline: &[Event]) -> Timestamp {
    let newest = || {
        timeline
            .iter()
            .rfind(|event| event.kind != "instance.updated")
            .map(|event| event.at)
    };
    let at = match instance.status.state {
        InstanceState::Pending => None,
        InstanceState::Unknown => instance.status.last_seen.or_else(newest),
        _ => newest(),
    };
    at.unwrap_or(instance.created_at)
}

fn on_default(instance: &Instance) -> bool {
    let mut nics = instance.spec.nics.iter();
    nics.any(|nic| nic.network.as_str() == crate::network::DEFAULT)
}

/// What was observed of the boot of a guest that is not ready.
fn boot_progress(instance: &Instance, evidence: &GuestEvidence) -> &'static str {
    let asked = |name: &str| {
        evidence
            .requests
            .iter()
            .any(|seen| seen.path.ends_with(name))
    };
    match evidence.requests.last() {
        // DHCP on a bridge is not observed.
        None if !on_default(instance) && instance.status.addresses.is_empty() => {
            " (no address was observed yet)"
        }
        None if on_default(instance) && evidence.dhcp_acknowledged_at.is_none() => {
            " (no DHCP acknowledgement yet)"
        }
        None => " (no metadata request yet)",
        Some(_) if asked("user_data") || asked("user-data") => " (it has requested its user-data)",
        Some(_) => " (it has not requested its user-data yet)",
    }
}

fn summary(
    instance: &Instance,
    evidence: Option<&GuestEvidence>,
    since: Timestamp,
    now: Timestamp,
) -> String {
    let status = &instance.status;
    let state = status.state;
    let long = ago(since, now);
    if state == InstanceState::Running {
        if let Some(summary) = super::why_cloud_init::summary(status, &long) {
            return summary;
        }
        if status.ready {
            return "running and ready".to_owned();
        }
        return format!(
            "not ready {long}, {}{}",
            waiting(instance, "cloud-init to finish"),
            evidence.map_or("", |evidence| boot_progress(instance, evidence))
        );
    }
    let reason = status.reason.as_deref();
    match state {
        InstanceState::Stopped => match status.stopped_by {
            Some(StoppedBy::Guest) => {
                format!("stopped {long} ago by the guest itself; it is not restarted")
            }
            Some(StoppedBy::Crash) => format!("stopped {long} ago by a crash"),
            Some(StoppedBy::Host) => format!("stopped {long} ago when its node shut down"),
            Some(StoppedBy::Outside) => {
                format!("stopped {long} ago by something other than waifud")
            }
            Some(StoppedBy::User) | None => format!("stopped {long} ago, as requested"),
        },
        InstanceState::Failed => format!(
            "failed {long} ago: {}",
            reason.unwrap_or("no reason was given")
        ),
        _ => match (reason, &status.step) {
            (_, Some(_)) => format!("{state} {long}, {}", waiting(instance, "its node")),
            (Some(reason), None) => format!("{state} {long}, {reason}"),
            (None, None) => format!("{state} {long}"),
        },
    }
}

fn waiting(instance: &Instance, otherwise: &str) -> String {
    match &instance.status.step {
        Some(step) => {
            let percent = step
                .percent
                .map(|p| format!(" ({p} %)"))
                .unwrap_or_default();
            match &step.waiting_for {
                Some(what) => format!("waiting for: {what}"),
                None => format!("current step: {}{percent}", step.name),
            }
        }
        None => format!("waiting for: {otherwise}"),
    }
}

fn hint(
    instance: &Instance,
    placement: &[PlacementVerdict],
    largest: Option<ByteSize>,
    unchanged_for: SignedDuration,
) -> Option<String> {
    let name = &instance.name;
    let status = &instance.status;
    match status.state {
        InstanceState::Pending if status.node.is_none() => {
            if placement.is_empty() {
                return Some(
                    "start waifud-agentd on a machine that should run instances".to_owned(),
                );
            }
            let off = placement
                .iter()
                .find(|v| v.reason == "off, would fit")
                .map(|v| &v.node);
            let smaller = largest.filter(|free| {
                *free < instance.spec.memory_bytes
                    && *free >= waifud_types::spec::limits::MEMORY_MIN
            });
            let mut ways = Vec::new();
            if let Some(free) = smaller {
                let fits = ByteSize::mib(free.bytes() >> 20).exact();
                ways.push(format!("create it with --memory {fits} or less"));
            }
            if let Some(node) = off {
                ways.push(format!(
                    "switch {node} on; the instance is then placed automatically"
                ));
            }
            if let Some(verdict) = placement.iter().find(|v| lacks_a_bridge(&v.reason)) {
                ways.push(format!(
                    "create the bridge on {} (docs/guides/lan.md); the instance is then placed automatically",
                    verdict.node
                ));
            }
            if ways.is_empty() {
                ways.push(
                    "request less, or add a node; the instance is then placed automatically"
                        .to_owned(),
                );
            }
            Some(ways.join(", or "))
        }
        InstanceState::Unknown => Some(format!(
            "switch its node on, or check it: waifuctl node show {}",
            status.node.as_ref().map_or("NODE", |node| node.as_str())
        )),
        InstanceState::Failed => Some(format!(
            "fix what the reason names; {name} is then retried automatically"
        )),
        InstanceState::Running
            if !status.ready && instance.spec.rescue.is_none() && unchanged_for > PATIENCE =>
        {
            Some(format!(
                "check its console: waifuctl console {name}; if you cannot log in, repair the guest with waifuctl rescue {name}"
            ))
        }
        InstanceState::Stopped if instance.spec.run => {
            Some(format!("start it again: waifuctl start {name}"))
        }
        _ => None,
    }
}

/// What to do about an instance on a node that deletes nothing because the database was restored.
fn hint_after_restore(instance: &Instance, node: &NodeRow) -> Option<String> {
    if node.confirmed {
        return None;
    }
    let (name, node, status) = (&instance.name, &node.name, &instance.status);
    let waits = status.step.as_ref().is_some_and(|step| step.name == "wait");
    match status.state {
        InstanceState::Deleting => Some(format!(
            "run waifuctl node confirm {node} to have it destroyed"
        )),
        InstanceState::Failed if waits => Some(format!(
            "if it was deleted since the backup: waifuctl delete {name}; otherwise waifuctl node confirm {node} creates it again \
             with an empty disk"
        )),
        _ => None,
    }
}

fn ago(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
