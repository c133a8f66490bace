//! `why`: what an instance waits for, how it got there, and what to do.

use jiff::SignedDuration;
use waifud_api::hint::{self, Hint, HintAction, HintKind, HintWhen};
use waifud_api::{Instance, PlacementVerdict, Why};
use waifud_store::NodeRow;
use waifud_types::event::Event;
use waifud_types::evidence::GuestEvidence;
use waifud_types::status::StoppedBy;
use waifud_types::{ByteSize, InstanceState, Name, Timestamp, Verdict, WaitReason};

use super::find;
use crate::network::nic_problems;
use crate::placement::place::{Related, verdicts};
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
                let mut placement = row.placement.read()?;
                let mut largest = None;
                if row.node.is_none() {
                    let capacities = tx.node_capacities()?;
                    let related = Related::read(&tx, &row.spec)?;
                    let request = related.request(&row.spec, &row.arch);
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
        let user_data = user_data.as_ref().map(|text| text.expose().as_str());
        let mut hints = Vec::new();
        if let Some(node) = node.as_ref().filter(|_| !instance.status.ready) {
            hints = hints_after_restore(&instance, node);
            if hints.is_empty() {
                hints.extend(accepts_nothing_new(node));
            }
        }
        let step = instance.status.step.as_ref();
        if hints.is_empty() && step.is_some_and(|step| step.name == "image") {
            hints = self.images().hints_if_missing(instance.spec.image).await?;
        }
        if hints.is_empty() {
            hints = super::why_cloud_init::hints(&instance, evidence.as_ref(), user_data);
        }
        if hints.is_empty() {
            hints = general_hints(&instance, &placement, largest, unchanged_for);
        }
        Ok(Why {
            summary: summary(&instance, evidence.as_ref(), since, now),
            hint: hint::in_english(&hints),
            hints,
            instance,
            placement,
            timeline,
            evidence,
        })
    }
}

/// Why the node accepts nothing new, if it reported a reason.
fn accepts_nothing_new(node: &NodeRow) -> Option<Hint> {
    let conditions = node.facts.conditions.iter();
    conditions
        .filter(|it| it.kind == "state-dir" && !it.ok && it.reason != "low")
        .map(|it| Hint::advice(format!("{}: {}", node.name, it.message)))
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
                format!("stopped {long} ago: the guest powered itself off, so it is not restarted")
            }
            Some(StoppedBy::Crash) => format!("stopped {long} ago by a crash"),
            Some(StoppedBy::Host) => format!("stopped {long} ago when its node shut down"),
            Some(StoppedBy::Outside) => {
                format!("stopped {long} ago outside waifud")
            }
            Some(StoppedBy::User) | None => format!("stopped {long} ago, as requested"),
        },
        InstanceState::Failed => format!(
            "failed {long} ago: {}",
            reason.unwrap_or("no reason was reported")
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

fn general_hints(
    instance: &Instance,
    placement: &[PlacementVerdict],
    largest: Option<ByteSize>,
    unchanged_for: SignedDuration,
) -> Vec<Hint> {
    let status = &instance.status;
    let on = |action: &HintAction| Hint::on(action, HintKind::Instance, instance.name.as_str());
    match status.state {
        InstanceState::Pending
            if matches!(status.wait_reason(), Some(WaitReason::CopyExists { .. })) =>
        {
            vec![
                on(&HintAction::Adopt { rename: false }),
                on(&HintAction::Delete { unmanaged: true }).when(HintWhen::Otherwise),
            ]
        }
        InstanceState::Pending if status.node.is_none() => {
            hints_of_placement(instance, placement, largest)
        }
        InstanceState::Unknown => {
            let on_node = |action: &HintAction| match &status.node {
                Some(node) => Hint::on(action, HintKind::Node, node.as_str()),
                None => Hint::on_kind(action, HintKind::Node),
            };
            vec![on_node(&HintAction::SwitchOn), on_node(&HintAction::Show)]
        }
        InstanceState::Failed
            if matches!(status.wait_reason(), Some(WaitReason::NodeRemoved { .. })) =>
        {
            vec![
                on(&HintAction::Recreate),
                Hint::advice(
                    "or, if the disks still exist, add the machine again and adopt the instance there",
                ),
            ]
        }
        InstanceState::Failed => vec![Hint::advice(format!(
            "fix the cause described above; {} is then retried automatically",
            instance.name
        ))],
        InstanceState::Running
            if !status.ready && instance.spec.rescue.is_none() && unchanged_for > PATIENCE =>
        {
            vec![
                on(&HintAction::OpenConsole),
                on(&HintAction::Rescue).when(HintWhen::CannotLogIn),
            ]
        }
        InstanceState::Stopped if instance.spec.run => vec![on(&HintAction::Start)],
        _ => Vec::new(),
    }
}

/// What makes room for an instance without a node.
fn hints_of_placement(
    instance: &Instance,
    placement: &[PlacementVerdict],
    largest: Option<ByteSize>,
) -> Vec<Hint> {
    if placement.is_empty() {
        return vec![Hint::action(&HintAction::AddNode)];
    }
    let on_node =
        |action: &HintAction, node: &Name| Hint::on(action, HintKind::Node, node.as_str());
    let mut hints = Vec::new();
    let smaller = largest.filter(|free| {
        *free < instance.spec.memory_bytes && *free >= waifud_types::spec::limits::MEMORY_MIN
    });
    if let Some(free) = smaller {
        let memory_bytes = ByteSize::mib(free.bytes() >> 20);
        let action = HintAction::Resize { memory_bytes };
        hints.push(Hint::on(
            &action,
            HintKind::Instance,
            instance.name.as_str(),
        ));
    }
    // One hint of each kind: for the best node.
    let switch_on = placement.iter().find_map(|entry| {
        let off = entry.verdict()? == Verdict::Unreachable { fits: true };
        off.then(|| on_node(&HintAction::SwitchOn, &entry.node))
    });
    let create_bridge = placement.iter().find_map(|entry| match entry.verdict()? {
        Verdict::NoBridge { bridge } => {
            Some(on_node(&HintAction::CreateBridge { bridge }, &entry.node))
        }
        _ => None,
    });
    let make_aware = placement.iter().find_map(|entry| match entry.verdict()? {
        Verdict::BridgeWithoutVlans { bridge } => {
            Some(nic_problems::make_vlan_aware(&bridge, &entry.node))
        }
        _ => None,
    });
    let uncordon = placement.iter().find_map(|entry| {
        let cordoned = entry.verdict()? == Verdict::Cordoned;
        cordoned.then(|| on_node(&HintAction::Uncordon, &entry.node))
    });
    let free_space = placement.iter().find_map(|entry| match entry.verdict()? {
        Verdict::PoolFull { pool, .. } => Some(Hint::advice(format!(
            "free space in pool {pool} of {}",
            entry.node
        ))),
        _ => None,
    });
    let conflict = placement.iter().find_map(|entry| match entry.verdict()? {
        Verdict::SubnetConflict { .. } => Some(Hint::advice(format!(
            "remove the route on {} that overlaps the guests' addresses",
            entry.node
        ))),
        _ => None,
    });
    let more = switch_on.into_iter().chain(uncordon).chain(create_bridge);
    hints.extend(more.chain(make_aware).chain(free_space).chain(conflict));
    if hints.is_empty() {
        hints.push("request less, or add a node".into());
    }
    hints.push(
        if hints.len() > 1 {
            "any one of these is enough; the instance is then placed without further action"
        } else {
            "the instance is then placed without further action"
        }
        .into(),
    );
    hints
}

/// What to do about an instance on a node that deletes nothing because the database was restored.
fn hints_after_restore(instance: &Instance, node: &NodeRow) -> Vec<Hint> {
    if node.confirmed {
        return Vec::new();
    }
    let status = &instance.status;
    let confirm = Hint::on(&HintAction::Confirm, HintKind::Node, node.name.as_str());
    let waits = status.step.as_ref().is_some_and(|step| step.name == "wait");
    match status.state {
        InstanceState::Deleting => vec![confirm],
        InstanceState::Failed if waits => vec![
            Hint::delete(&instance.name).when(HintWhen::DeletedSinceBackup),
            confirm.when(HintWhen::NotDeletedSinceBackup),
        ],
        _ => Vec::new(),
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
