//! Hello: a node sends its facts at each connection, and is registered the first time.

use waifud_api::agent::bounds::OutOfBounds;
use waifud_api::agent::{Hello, Welcome};
use waifud_store::{NewNode, NodeRow, StoreError, Taken, Topic, WriteTx};
use waifud_types::event::Cause;
use waifud_types::node::NodeFacts;
use waifud_types::{Epoch, Name, NodeId};

use crate::events::event_builder;
use crate::network::subnet;
use crate::nodes::contacts::{ContactTime, Made};
use crate::nodes::copies::{Judgement, Machine};
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError, Peer};

/// A hello, and the node that sent it.
struct Introduction<'a> {
    node: NodeId,
    name: &'a Name,
    hello: &'a Hello,
    cause: &'a Cause,
}

impl Control {
    /// Stores the facts of a node, which its certificate identifies. The first time, the node is registered.
    pub async fn hello(
        &self,
        node: NodeId,
        mut hello: Hello,
        peer: Peer,
        request_id: &str,
    ) -> Result<Welcome, ControlError> {
        hello.check().map_err(|error| out_of_bounds(&error))?;
        self.require_budget(node)?;
        // Hellos without an order are not checked: after an agent's start, its clock may have been set back.
        let made = Made {
            order: hello.order,
            at: None,
        };
        if self.contacts().has_newer(node, made) {
            return Err(node_problems::outdated_report().into());
        }
        let from = Machine {
            boot: hello.boot_id,
            hardware: hello.hardware,
        };
        let judgement = self.contacts().judge_hello(node, from);
        self.refuse_copies(node, judgement).await?;
        if !self.contacts().is_newest(node, made) {
            return Err(node_problems::outdated_report().into());
        }
        let request_id = request_id.to_owned();
        let (used, pools, clock) = (hello.facts.used, hello.facts.pools.clone(), hello.now);
        let control = self.clone();
        let cost = self
            .store()
            .write(move |tx| {
                if control.contacts().has_newer(node, made) {
                    return Err(node_problems::outdated_report().into());
                }
                let before = tx.newest();
                // The name of the admission or of a later rename. The name in the hello has no effect, since instances are
                // pinned to names.
                let name = tx
                    .node_key(node)?
                    .ok_or_else(node_problems::unknown_node)?
                    .name;
                let cause = peer.cause_of(&name, &request_id);
                let introduction = Introduction {
                    node,
                    name: &name,
                    hello: &hello,
                    cause: &cause,
                };
                control.hello_in(tx, &introduction)?;
                Ok::<_, ControlError>(tx.newest() - before)
            })
            .await?;
        self.contacts().charge(node, cost);
        self.contacts()
            .record_contact(node, self.contact_time(), Some(clock));
        self.contacts().record_load(node, used, pools);
        Ok(Welcome {
            node,
            incarnation: self.store().incarnation(),
            addresses: self.config().addresses.clone(),
        })
    }

    /// Refuses a message of a copy of a node. Records that there is one when that becomes known.
    pub(super) async fn refuse_copies(
        &self,
        node: NodeId,
        judgement: Judgement,
    ) -> Result<(), ControlError> {
        let is_new = match judgement {
            Judgement::Node => return Ok(()),
            Judgement::Unknown => return Err(node_problems::outdated_report().into()),
            Judgement::Returned => true,
            Judgement::Copy { new } => new,
        };
        let name = self.store().read(move |tx| tx.node_key(node)).await?;
        let name = name.ok_or_else(node_problems::unknown_node)?.name;
        let running = self.contact_time().running;
        let is_noted = is_new && self.contacts().take_note_of_copy(node, running);
        let returned = judgement == Judgement::Returned;
        if is_noted || returned {
            self.record_copy(node, &name, is_noted).await?;
        }
        match judgement {
            Judgement::Copy { .. } => Err(node_problems::is_copy(&name).into()),
            _ => Ok(()),
        }
    }

    /// Ends the watch of a copy that is known now, and records an event if it is due.
    async fn record_copy(
        &self,
        node: NodeId,
        name: &Name,
        is_noted: bool,
    ) -> Result<(), ControlError> {
        let event = is_noted.then(|| {
            tracing::error!(node = %name, "two machines use the key of one node");
            event_builder::event(
                self.now(),
                "node.duplicate",
                event_builder::node(node, name),
                &Cause::system(),
                "another machine uses its key, because its disk was copied; the copy is refused",
            )
        });
        self.store()
            .write(move |tx| {
                if let Some(event) = &event {
                    tx.emit(event)?;
                }
                tx.touch(Topic::Node(node));
                Ok::<_, ControlError>(())
            })
            .await
    }

    fn hello_in(&self, tx: &mut WriteTx<'_>, by: &Introduction<'_>) -> Result<(), ControlError> {
        let Introduction { hello, cause, .. } = by;
        let Some(row) = tx.node(by.node)? else {
            return self.register(tx, by);
        };
        if let Some(boot) = hello.boot_id {
            self.record_boot(tx, &row, boot)?;
        }
        if row.name != hello.name {
            tracing::info!(
                node = %row.name, configured = %hello.name,
                "the name in a node's configuration differs from its name in waifud; an administrator can rename it: waifuctl node rename"
            );
        }
        self.record_facts(tx, &row, &hello.facts, cause)?;
        self.mark_reachable(tx, &row, cause)?;
        self.place_waiting(tx)
    }

    fn register(&self, tx: &mut WriteTx<'_>, by: &Introduction<'_>) -> Result<(), ControlError> {
        let Introduction { name, hello, .. } = by;
        let range = self.config().guest_range;
        let routes = &hello.facts.routes;
        // A removed machine that comes back, or its replacement. Guests on it have addresses of this subnet.
        let former = tx
            .subnet_of_removed(name)?
            .filter(|it| !routes.iter().any(|route| subnet::overlap(*route, *it)));
        if let Some(former) = former {
            tx.release_subnet_of_removed(name, former)?;
        }
        let subnet = match former {
            Some(former) => former,
            None => subnet::free_subnet(range, &tx.subnets()?, routes)
                .ok_or_else(|| node_problems::no_subnet(&range.to_string()))?,
        };
        let new = NewNode {
            id: by.node,
            name: (*name).clone(),
            facts: hello.facts.clone(),
            subnet,
            at: self.now(),
        };
        let event = event_builder::event(
            new.at,
            "node.joined",
            event_builder::node(new.id, &new.name),
            by.cause,
            format!(
                "{} CPUs, {} memory, {}, guest subnet {subnet}",
                new.facts.capacity.cpus,
                new.facts.capacity.memory_bytes,
                new.facts.hypervisor.kind.as_str()
            ),
        );
        let revision = tx.emit(&event)?;
        tx.insert_node(&new, revision)
            .map_err(|error| match error {
                StoreError::Taken(Taken::NodeName) => node_problems::node_name_taken(name).into(),
                other => ControlError::from(other),
            })?;
        if let Some(boot) = hello.boot_id {
            tx.set_node_boot(by.node, boot)?;
        }
        // After a restore, the database may be from before the node's first hello. Guests may run on the node then.
        let present = self.store().incarnation();
        let known = hello.incarnation.is_some_and(|known| known != present);
        let restored = tx.epoch_floor()? > Epoch(0);
        if hello.incarnation.is_some() || restored || former.is_some() {
            // A node that comes from another cluster needs no confirmation of a restore that never happened.
            tx.expect_unmanaged(by.node, !(known && restored))?;
        }
        self.place_waiting(tx)
    }

    /// Stores changed facts of a node, except its load.
    pub(crate) fn record_facts(
        &self,
        tx: &mut WriteTx<'_>,
        row: &NodeRow,
        facts: &NodeFacts,
        cause: &Cause,
    ) -> Result<bool, ControlError> {
        // A node that has just started does not know its address yet, and keeps what it has reported before.
        let kept = NodeFacts {
            mesh: facts.mesh.clone().or_else(|| row.facts.mesh.clone()),
            peer_port: facts
                .peer_port
                .clone()
                .or_else(|| row.facts.peer_port.clone()),
            ..facts.clone()
        };
        let facts = &kept;
        if !differ(&row.facts, facts) {
            return Ok(false);
        }
        self.avoid_routes(tx, row, facts, cause)?;
        self.emit_conditions(tx, row, &facts.conditions, cause)?;
        if differ(&with_images_of(&row.facts, facts), facts) {
            let revision = tx.emit(&self.event(
                "node.changed",
                event_builder::node(row.id, &row.name),
                cause,
                format!(
                    "{} CPUs, {} memory, {}, {} pool{}",
                    facts.capacity.cpus,
                    facts.capacity.memory_bytes,
                    facts.hypervisor.kind.as_str(),
                    facts.pools.len(),
                    if facts.pools.len() == 1 { "" } else { "s" }
                ),
            ))?;
            if facts.mesh != row.facts.mesh {
                tx.set_node_mesh(row.id, facts.mesh.as_ref(), revision)?;
            }
        }
        tx.set_node_facts(row.id, facts)?;
        Ok(true)
    }

    /// Assigns another subnet to a node that has a route to its current one, as long as no instance uses it.
    fn avoid_routes(
        &self,
        tx: &mut WriteTx<'_>,
        row: &NodeRow,
        facts: &NodeFacts,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let conflicts = facts
            .routes
            .iter()
            .any(|route| subnet::overlap(*route, row.subnet));
        let may_have_guests = row.unmanaged.count > 0 || !row.unmanaged.swept;
        if !conflicts || may_have_guests || !tx.instances_on(row.id)?.is_empty() {
            return Ok(());
        }
        let range = self.config().guest_range;
        let Some(free) = subnet::free_subnet(range, &tx.subnets()?, &facts.routes) else {
            return Ok(());
        };
        let event = self.event(
            "node.changed",
            event_builder::node(row.id, &row.name),
            cause,
            format!(
                "guest subnet changed to {free}: the node has another route to {}",
                row.subnet
            ),
        );
        let revision = tx.emit(&event)?;
        tx.set_node_subnet(row.id, free, revision)?;
        Ok(())
    }

    /// The time of a contact now.
    pub(crate) fn contact_time(&self) -> ContactTime {
        ContactTime {
            running: self.running(),
            at: self.now(),
        }
    }

    /// Refuses a report that exceeds the node's write budget.
    pub(super) fn require_budget(&self, node: NodeId) -> Result<(), ControlError> {
        if self.contacts().may_write(node, self.running()) {
            return Ok(());
        }
        Err(node_problems::too_many_changes().into())
    }

    /// Marks an unreachable node as reachable; returns whether that changed anything.
    pub(crate) fn mark_reachable(
        &self,
        tx: &mut WriteTx<'_>,
        row: &NodeRow,
        cause: &Cause,
    ) -> Result<bool, ControlError> {
        if row.reachable {
            return Ok(false);
        }
        let revision = tx.emit(&self.event(
            "node.ready",
            event_builder::node(row.id, &row.name),
            cause,
            "reconnected",
        ))?;
        tx.set_node_reachable(row.id, true, self.now(), revision)?;
        Ok(true)
    }
}

/// The problem of a value out of bounds.
pub(super) fn out_of_bounds(error: &OutOfBounds) -> ControlError {
    node_problems::out_of_bounds(&error.field, &error.why).into()
}

/// The old facts with the images of the new ones. An imported or removed image is stored, but it is no event.
fn with_images_of(old: &NodeFacts, new: &NodeFacts) -> NodeFacts {
    let mut facts = old.clone();
    for pool in &mut facts.pools {
        if let Some(now) = new.pools.iter().find(|p| p.name == pool.name) {
            pool.images.clone_from(&now.images);
        }
    }
    facts
}

/// Whether the facts differ in more than the load. The used space of a pool is compared with a tolerance of 1/16, except
/// that a pool that became full, or is not full anymore, differs: placement uses the stored facts.
pub(crate) fn differ(old: &NodeFacts, new: &NodeFacts) -> bool {
    let mut comparable = new.clone();
    comparable.used = old.used;
    for pool in &mut comparable.pools {
        if let Some(before) = old.pools.iter().find(|p| p.name == pool.name) {
            let moved = before.used_bytes.bytes().abs_diff(pool.used_bytes.bytes());
            if moved <= pool.size_bytes.bytes() / 16 && before.is_full() == pool.is_full() {
                pool.used_bytes = before.used_bytes;
            }
            pool.promised_bytes = before.promised_bytes;
        }
    }
    comparable != *old
}
