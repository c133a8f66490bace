//! Place: a node, an address and a bundle for an instance, in the transaction that promises them.

use waifud_api::PlacementVerdict;
use waifud_store::{InstanceRow, NodeCapacity, NodeRow, PlacementRow, ReadTx, StoreError, WriteTx};
use waifud_types::spec::InstanceSpec;
use waifud_types::{Name, NodeId};

use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::events::event_builder::EventExt;
use crate::instances::documents;
use crate::network;
use crate::placement::{Choice, PlacementRequest, choose};
use crate::{Control, ControlError};

/// Verdicts that are written down with an instance, the best first: what people read. With hundreds of nodes, all of
/// them would be most of what a create writes. For one that waits, `why` judges every node anew.
const VERDICTS_KEPT: usize = 16;

/// What became of a try.
pub(super) enum Outcome {
    /// It has a node.
    Placed(Box<InstanceRow>),
    /// It has none, and why.
    Waits(Box<InstanceRow>, Choice),
}

impl Control {
    /// Tries to place an unplaced instance, and says on it why that could not be done.
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

    /// Tries to place an unplaced instance. Nothing is written down when that can't be done.
    pub(super) fn try_to_place(
        &self,
        tx: &mut WriteTx<'_>,
        row: InstanceRow,
        capacities: &[NodeCapacity],
        cause: &Cause,
    ) -> Result<Outcome, ControlError> {
        let bridges = tx.bridges()?;
        let beside = beside(tx, &row.spec)?;
        let wish = PlacementRequest {
            spec: &row.spec,
            arch: &row.arch,
            bridges: &bridges,
            beside: &beside,
        };
        let mut choice = choose(&wish, capacities, VERDICTS_KEPT);
        let mut candidates = std::borrow::Cow::Borrowed(capacities);
        let mut unfit = Vec::new();
        while let Some(capacity) = choice
            .node
            .and_then(|id| capacities.iter().find(|capacity| capacity.node.id == id))
        {
            let obstacle = match network::fit(tx, &row.spec, &capacity.node)? {
                Ok(address) => {
                    choice.verdicts.append(&mut unfit);
                    let row = self.assign_node(tx, row, capacity, address, choice, cause)?;
                    return Ok(Outcome::Placed(Box::new(row)));
                }
                Err(obstacle) => obstacle,
            };
            unfit.push(without(&capacity.node, obstacle.verdict));
            candidates
                .to_mut()
                .retain(|other| other.node.id != capacity.node.id);
            choice = choose(&wish, &candidates, VERDICTS_KEPT);
            choice.nodes = capacities.len();
            choice.reason = Some(format!("waiting for: {}", obstacle.waits_for));
        }
        choice.verdicts.append(&mut unfit);
        Ok(Outcome::Waits(Box::new(row), choice))
    }

    fn assign_node(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        capacity: &NodeCapacity,
        address: Option<std::net::Ipv4Addr>,
        mut choice: Choice,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        let node = &capacity.node;
        if let Some(address) = address {
            for (index, nic) in (0..).zip(&mut row.spec.nics) {
                if network::is_default(&nic.network) {
                    nic.address = Some(address);
                    tx.set_lease_address(row.id, index, address)?;
                }
            }
        }
        row.status.node = Some(node.name.clone());
        row.node_name = Some(node.name.clone());
        row.status.reason = Some(format!("waiting for {} to take it up", node.name));
        let why = match choice.nodes {
            1 => "the only node".to_owned(),
            nodes => format!("most room of {nodes}"),
        };
        choice.verdicts.truncate(VERDICTS_KEPT);
        let event = event_builder::event(
            self.now(),
            "instance.placed",
            event_builder::instance(row.id, &row.name),
            cause,
            match address.or_else(|| row.spec.nics.iter().find_map(|nic| nic.address)) {
                Some(address) => format!("on {} ({why}), {address}", node.name),
                None => format!("on {} ({why})", node.name),
            },
        )
        .generation(row.generation)
        .details(serde_json::json!({ "node": node.name, "address": address, "verdicts": choice.verdicts }));
        let revision = tx.emit(&event)?;
        let placement = PlacementRow {
            instance: row.id,
            node: node.id,
            spec: &row.spec,
            status: &row.status,
            verdicts: &choice.verdicts,
        };
        tx.place(&placement, revision)?;
        row.node = Some(node.id);
        network::reserve_ports(tx, &row, &row.spec.publish)?;
        row.placement = choice.verdicts;
        self.put_bundle(tx, &row, &node.name, node.subnet)?;
        Ok(row)
    }

    /// Renders the instance's documents anew and makes them its own.
    pub(crate) fn put_bundle(
        &self,
        tx: &mut WriteTx<'_>,
        row: &InstanceRow,
        node: &Name,
        net: ipnet::Ipv4Net,
    ) -> Result<(), ControlError> {
        let bundle = documents::bundle(
            row,
            node,
            net,
            &self.shared.config.domain,
            tx.ssh_keys(row.id)?,
            tx.user_data(row.id)?,
            self.shared.entropy.as_ref(),
        )?;
        tx.put_bundle(row.id, &bundle, self.now())?;
        Ok(())
    }

    /// Says on an instance why it has no node; with `tell`, in the history, too.
    pub(super) fn keep_waiting(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        mut choice: Choice,
        cause: &Cause,
        tell: bool,
    ) -> Result<InstanceRow, ControlError> {
        choice.verdicts.truncate(VERDICTS_KEPT);
        if row.placement != choice.verdicts {
            tx.set_verdicts(row.id, &choice.verdicts)?;
            row.placement = choice.verdicts;
        }
        self.set_reason(tx, &mut row, choice.reason, cause, tell)?;
        Ok(row)
    }

    /// Says on an instance what it waits for.
    pub(super) fn set_reason(
        &self,
        tx: &mut WriteTx<'_>,
        row: &mut InstanceRow,
        reason: Option<String>,
        cause: &Cause,
        tell: bool,
    ) -> Result<(), ControlError> {
        if row.status.reason == reason {
            return Ok(());
        }
        row.status.reason = reason;
        tx.set_status(row.id, &row.status)?;
        if tell {
            let event = event_builder::event(
                self.now(),
                "instance.waiting",
                event_builder::instance(row.id, &row.name),
                cause,
                row.status.reason.clone().unwrap_or_default(),
            )
            .generation(row.generation)
            .reason("insufficient-capacity");
            tx.emit(&event)?;
        }
        Ok(())
    }
}

/// How many instances of its spread group each node has.
pub(crate) fn beside(
    tx: &ReadTx<'_>,
    spec: &InstanceSpec,
) -> Result<Vec<(NodeId, u32)>, StoreError> {
    match &spec.placement.spread {
        Some(spread) => tx.members_of(&spread.group),
        None => Ok(Vec::new()),
    }
}

/// The verdict on a node that has room, and something in the way.
fn without(node: &NodeRow, reason: String) -> PlacementVerdict {
    PlacementVerdict {
        node: node.name.clone(),
        score: None,
        reason,
    }
}

/// Every node's part in the choice as it would be made now.
pub(crate) fn verdicts(
    tx: &ReadTx<'_>,
    wish: &PlacementRequest<'_>,
    capacities: &[NodeCapacity],
) -> Result<Vec<PlacementVerdict>, ControlError> {
    let mut verdicts = choose(wish, capacities, usize::MAX).verdicts;
    for verdict in verdicts.iter_mut().filter(|v| v.score.is_some()) {
        if let Some(capacity) = capacities
            .iter()
            .find(|capacity| capacity.node.name == verdict.node)
            && let Err(obstacle) = network::fit(tx, wish.spec, &capacity.node)?
        {
            *verdict = without(&capacity.node, obstacle.verdict);
        }
    }
    Ok(verdicts)
}
