//! Places an instance: its node, its address and its bundle, in the transaction that reserves them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use waifud_api::PlacementVerdict;
use waifud_store::{
    InstanceRow, NodeCapacity, NodeRow, PlacementRow, ReadTx, StoreError, StoredVerdicts, WriteTx,
};
use waifud_types::event::Cause;
use waifud_types::spec::InstanceSpec;
use waifud_types::{Coded, Epoch, Name, NodeId, Verdict, WaitReason};

use crate::events::event_builder::EventExt;
use crate::instances::documents;
use crate::network;
use crate::placement::{Choice, PlacementRequest, choose};
use crate::{Control, ControlError};

/// The number of verdicts stored with an instance, best first. With hundreds of nodes, all verdicts would be most of the
/// data that a create writes. For an instance that waits, `why` computes the verdicts on all nodes.
const VERDICTS_KEPT: usize = 16;

/// The result of an attempt to place an instance.
pub(super) enum Outcome {
    /// The instance has a node.
    Placed(Box<InstanceRow>),
    /// No node can run the instance now, with the reason.
    Waits(Box<InstanceRow>, Choice),
}

impl Control {
    /// Tries to place an instance, and records the reason if that is not possible.
    pub(crate) fn place(
        &self,
        tx: &mut WriteTx<'_>,
        row: InstanceRow,
        capacities: &[NodeCapacity],
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        match self.try_to_place(tx, row, capacities, cause)? {
            Outcome::Placed(row) => Ok(*row),
            Outcome::Waits(row, choice) => self.keep_waiting(tx, *row, choice, cause, true),
        }
    }

    /// Tries to place an instance. Nothing is written if that is not possible.
    pub(super) fn try_to_place(
        &self,
        tx: &mut WriteTx<'_>,
        row: InstanceRow,
        capacities: &[NodeCapacity],
        cause: &Cause,
    ) -> Result<Outcome, ControlError> {
        let related = Related::read(tx, &row.spec)?;
        let request = related.request(&row.spec, &row.arch);
        if let Some(node) = node_with_copy(tx, &row)? {
            let choice = Choice {
                node: None,
                verdicts: Vec::new(),
                nodes: capacities.len(),
                reason: Some(WaitReason::CopyExists { node }),
            };
            return Ok(Outcome::Waits(Box::new(row), choice));
        }
        let unreported = unreported(tx, &row, capacities)?;
        let possible = unreported.as_deref().unwrap_or(capacities);
        let (choice, address) = decide(tx, &request, possible, VERDICTS_KEPT)?;
        let mut nodes = capacities.iter();
        match nodes.find(|capacity| Some(capacity.node.id) == choice.node) {
            Some(capacity) => {
                let row = self.assign_node(tx, row, capacity, address, choice, cause)?;
                Ok(Outcome::Placed(Box::new(row)))
            }
            None => Ok(Outcome::Waits(Box::new(row), choice)),
        }
    }

    fn assign_node(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        capacity: &NodeCapacity,
        address: Option<Ipv4Addr>,
        mut choice: Choice,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        let node = &capacity.node;
        if let Some(address) = address {
            network::set_default_address(tx, row.id, &mut row.spec, address)?;
        }
        row.status.node = Some(node.name.clone());
        row.owner.name = Some(node.name.clone());
        row.status.set_wait(&WaitReason::NodePreparing {
            node: node.name.clone(),
        });
        let why = match choice.nodes {
            1 => "the only suitable node".to_owned(),
            nodes => format!("the best of {nodes} nodes"),
        };
        choice.verdicts.truncate(VERDICTS_KEPT);
        let message = match address.or_else(|| row.spec.nics.iter().find_map(|nic| nic.address)) {
            Some(address) => format!("on {} ({why}), {address}", node.name),
            None => format!("on {} ({why})", node.name),
        };
        let details = serde_json::json!({
            "node": node.name, "address": address, "verdicts": choice.verdicts,
        });
        let event = self
            .instance_event("instance.placed", &row, cause, message)
            .details(details);
        let revision = tx.emit(&event)?;
        row.placement = StoredVerdicts::new(&choice.verdicts)?;
        let placement = PlacementRow {
            instance: row.id,
            node: node.id,
            spec: &row.spec,
            status: &row.status,
            verdicts: &row.placement,
        };
        tx.place(&placement, revision)?;
        row.node = Some(node.id);
        if let Some(home) = row.home {
            // It has kept its address, or has another one because the node cannot carry that.
            let outside = address.is_some_and(|address| !node.subnet.contains(&address));
            row.home = outside.then_some(home);
            tx.set_home(row.id, row.home, &[node.id], revision)?;
        }
        network::reserve_ports(tx, &row, &row.spec.publish)?;
        self.put_bundle(tx, &row, node)?;
        Ok(row)
    }

    /// Renders the instance's documents and stores them as its current bundle.
    pub(crate) fn put_bundle(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        node: &NodeRow,
    ) -> Result<(), ControlError> {
        let bundle = documents::bundle(
            row,
            node,
            &self.config().domain,
            tx.ssh_keys(row.id)?,
            tx.user_data(row.id)?,
            self.entropy(),
        )?;
        tx.put_bundle(row.id, &bundle, self.now())?;
        Ok(())
    }

    /// Records why an instance has no node; with `emit`, also as an event.
    pub(super) fn keep_waiting(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        mut choice: Choice,
        cause: &Cause,
        emit: bool,
    ) -> Result<InstanceRow, ControlError> {
        choice.verdicts.truncate(VERDICTS_KEPT);
        let verdicts = StoredVerdicts::new(&choice.verdicts)?;
        if row.placement != verdicts {
            tx.set_verdicts(row.id, &verdicts)?;
            row.placement = verdicts;
        }
        self.set_reason(tx, &mut row, choice.reason.as_ref(), cause, emit)?;
        Ok(row)
    }

    /// Records what an instance waits for; with `emit`, also as an event if the text differs. The fields may contain exact
    /// sizes, which change more often than the text.
    pub(super) fn set_reason(
        &self,
        tx: &mut WriteTx<'_>,
        row: &mut InstanceRow,
        reason: Option<&WaitReason>,
        cause: &Cause,
        emit: bool,
    ) -> Result<(), ControlError> {
        if row.status.cause == reason.map(Coded::encode) {
            return Ok(());
        }
        let before = row.status.reason.clone();
        match reason {
            Some(reason) => row.status.set_wait(reason),
            None => row.status.clear_reason(),
        }
        tx.set_status(row.id, &row.status)?;
        if emit && row.status.reason != before {
            let event = self
                .instance_event(
                    "instance.waiting",
                    row,
                    cause,
                    row.status.reason.clone().unwrap_or_default(),
                )
                .reason("insufficient-capacity")
                .details(serde_json::json!({ "cause": row.status.cause }));
            tx.emit(&event)?;
        }
        Ok(())
    }
}

/// The nodes that have not reported what is on them since waifud's database was restored, if the instance waited for a node in the
/// backup: one of them may have got it since, and no other node gets it before that is known. `None` if there are none.
fn unreported(
    tx: &ReadTx<'_>,
    row: &InstanceRow,
    capacities: &[NodeCapacity],
) -> Result<Option<Vec<NodeCapacity>>, StoreError> {
    if !tx.is_restored(row.id)? {
        return Ok(None);
    }
    let nodes = capacities.iter();
    let unreported = nodes.filter(|capacity| !capacity.node.unmanaged.swept);
    let unreported: Vec<NodeCapacity> = unreported.cloned().collect();
    Ok(Some(unreported).filter(|nodes| !nodes.is_empty()))
}

/// A node that has a copy of the instance, whose disks may be wanted: the instance was recreated, and the machine that was removed
/// has returned before it was placed; or it was placed after the backup that was restored.
fn node_with_copy(tx: &ReadTx<'_>, row: &InstanceRow) -> Result<Option<Name>, StoreError> {
    if row.epoch == Epoch::FIRST && !tx.is_restored(row.id)? {
        return Ok(None);
    }
    match tx.unmanaged_copies(row.id)?.into_iter().next() {
        Some((node, _)) => Ok(tx.node(node)?.map(|node| node.name)),
        None => Ok(None),
    }
}

/// What the database knows about the networks and the other instances that a placement refers to.
pub(crate) struct Related {
    bridges: BTreeMap<Name, String>,
    group_members: Vec<(NodeId, u32)>,
    near: Option<NodeId>,
}

impl Related {
    pub(crate) fn read(tx: &ReadTx<'_>, spec: &InstanceSpec) -> Result<Self, StoreError> {
        let placement = &spec.placement;
        let near = match &placement.near {
            Some(near) => tx.instance_named(near.as_str())?,
            None => None,
        };
        Ok(Self {
            bridges: tx.bridges()?,
            group_members: match &placement.spread {
                Some(spread) => tx.members_of(&spread.group)?,
                None => Vec::new(),
            },
            near: near.filter(|row| !row.deleting).and_then(|row| row.node),
        })
    }

    pub(crate) fn request<'a>(
        &'a self,
        spec: &'a InstanceSpec,
        arch: &'a str,
    ) -> PlacementRequest<'a> {
        PlacementRequest {
            spec,
            arch,
            bridges: &self.bridges,
            group_members: &self.group_members,
            near: self.near,
        }
    }
}

/// Chooses a node with enough capacity and no obstacle in its network, and the instance's address on `default` there, with
/// the verdicts on the best `shown` nodes.
pub(crate) fn decide(
    tx: &ReadTx<'_>,
    request: &PlacementRequest<'_>,
    capacities: &[NodeCapacity],
    shown: usize,
) -> Result<(Choice, Option<Ipv4Addr>), ControlError> {
    let mut choice = choose(request, capacities, shown);
    let mut candidates = std::borrow::Cow::Borrowed(capacities);
    let mut unfit = Vec::new();
    while let Some(capacity) = choice
        .node
        .and_then(|id| capacities.iter().find(|capacity| capacity.node.id == id))
    {
        let obstacle = match network::fit(tx, request.spec, &capacity.node)? {
            Ok(address) => {
                choice.verdicts.append(&mut unfit);
                return Ok((choice, address));
            }
            Err(obstacle) => obstacle,
        };
        unfit.push(without(&capacity.node, &obstacle.verdict));
        candidates
            .to_mut()
            .retain(|other| other.node.id != capacity.node.id);
        choice = choose(request, &candidates, shown);
        choice.nodes = capacities.len();
        choice.reason = Some(obstacle.waits_for);
    }
    choice.verdicts.append(&mut unfit);
    Ok((choice, None))
}

/// The verdict on a node with enough capacity, but an obstacle in its network.
fn without(node: &NodeRow, verdict: &Verdict) -> PlacementVerdict {
    PlacementVerdict::new(node.name.clone(), None, verdict)
}

/// The verdicts on all nodes as of now.
pub(crate) fn verdicts(
    tx: &ReadTx<'_>,
    request: &PlacementRequest<'_>,
    capacities: &[NodeCapacity],
) -> Result<Vec<PlacementVerdict>, ControlError> {
    let mut verdicts = choose(request, capacities, usize::MAX).verdicts;
    for verdict in verdicts.iter_mut().filter(|v| v.score.is_some()) {
        if let Some(capacity) = capacities
            .iter()
            .find(|capacity| capacity.node.name == verdict.node)
            && let Err(obstacle) = network::fit(tx, request.spec, &capacity.node)?
        {
            *verdict = without(&capacity.node, &obstacle.verdict);
        }
    }
    Ok(verdicts)
}
