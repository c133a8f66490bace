//! Hello: a node introduces itself, and is registered the first time.

use waifud_api::agent::{Hello, Welcome};
use waifud_store::{NewNode, NodeRow, StoreError, Taken, WriteTx};
use waifud_types::NodeId;
use waifud_types::node::NodeFacts;

use crate::principal::Cause;
use crate::{Control, ControlError, Peer, note, problems, subnet};

impl Control {
    /// Takes in what a node says of itself. Its certificate has said which one it is; the first time it is registered.
    pub async fn hello(
        &self,
        node: NodeId,
        hello: Hello,
        peer: Peer,
        request_id: &str,
    ) -> Result<Welcome, ControlError> {
        let cause = Cause::node(
            hello.name.as_str(),
            Some(peer.from()),
            Some(request_id.to_owned()),
        );
        let now = self.now();
        let (used, pools, clock) = (hello.facts.used, hello.facts.pools.clone(), hello.now);
        let control = self.clone();
        self.shared
            .store
            .write(move |tx| control.hello_in(tx, node, &hello, &cause))
            .await?;
        self.shared.live.heard_of(node, now, Some(clock));
        self.shared.live.set_use(node, used, pools);
        Ok(Welcome {
            node,
            incarnation: self.shared.store.incarnation(),
            addresses: self.shared.config.addresses.clone(),
        })
    }

    fn hello_in(
        &self,
        tx: &mut WriteTx<'_>,
        node: NodeId,
        hello: &Hello,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        if tx
            .node_id_named(&hello.name)?
            .is_some_and(|owner| owner != node)
        {
            return Err(problems::node_name_taken(&hello.name).into());
        }
        let Some(row) = tx.node(node)? else {
            return self.register(tx, node, hello, cause);
        };
        if let Some(boot) = hello.boot_id {
            self.learn_boot(tx, &row, boot)?;
        }
        if row.name != hello.name {
            let event = note::event(
                self.now(),
                "node.renamed",
                note::node(row.id, &hello.name),
                cause,
                format!("it was called {}", row.name),
            );
            let revision = tx.emit(&event)?;
            tx.rename_node(row.id, &hello.name, revision)
                .and_then(|()| tx.rename_node_key(row.id, &hello.name))
                .map_err(|error| name_taken(error, hello))?;
        }
        self.learn_facts(tx, &row, &hello.facts, cause)?;
        self.back_again(tx, &row, cause)?;
        self.place_waiting(tx)
    }

    fn register(
        &self,
        tx: &mut WriteTx<'_>,
        node: NodeId,
        hello: &Hello,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let range = self.shared.config.guest_range;
        let subnet = subnet::free_subnet(range, &tx.subnets()?, &hello.facts.routes)
            .ok_or_else(|| problems::no_subnet(&range.to_string()))?;
        let new = NewNode {
            id: node,
            name: hello.name.clone(),
            facts: hello.facts.clone(),
            subnet,
            at: self.now(),
        };
        let event = note::event(
            new.at,
            "node.joined",
            note::node(new.id, &new.name),
            cause,
            format!(
                "{} CPUs, {} memory, {}, guests in {subnet}",
                new.facts.capacity.cpus,
                new.facts.capacity.memory_bytes,
                new.facts.hypervisor.kind.as_str()
            ),
        );
        let revision = tx.emit(&event)?;
        tx.insert_node(&new, revision)
            .and_then(|()| tx.rename_node_key(node, &hello.name))
            .map_err(|error| name_taken(error, hello))?;
        if let Some(boot) = hello.boot_id {
            tx.set_node_boot(node, boot)?;
        }
        self.place_waiting(tx)
    }

    /// Stores what changed of a node's facts, beyond what only tells how much is in use.
    pub(crate) fn learn_facts(
        &self,
        tx: &mut WriteTx<'_>,
        row: &NodeRow,
        facts: &NodeFacts,
        cause: &Cause,
    ) -> Result<bool, ControlError> {
        if !matters(&row.facts, facts) {
            return Ok(false);
        }
        self.avoid_routes(tx, row, facts, cause)?;
        self.tell_conditions(tx, row, &facts.conditions, cause)?;
        tx.emit(&note::event(
            self.now(),
            "node.changed",
            note::node(row.id, &row.name),
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
        tx.set_node_facts(row.id, facts)?;
        Ok(true)
    }

    /// Gives a node another subnet when it turns out to route to the one that it has, as long as nothing is in it.
    fn avoid_routes(
        &self,
        tx: &mut WriteTx<'_>,
        row: &NodeRow,
        facts: &NodeFacts,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let in_the_way = facts
            .routes
            .iter()
            .any(|route| subnet::overlap(*route, row.subnet));
        if !in_the_way || !row.unclaimed.is_empty() || !tx.instances_on(row.id)?.is_empty() {
            return Ok(());
        }
        let range = self.shared.config.guest_range;
        let Some(free) = subnet::free_subnet(range, &tx.subnets()?, &facts.routes) else {
            return Ok(());
        };
        let event = note::event(
            self.now(),
            "node.changed",
            note::node(row.id, &row.name),
            cause,
            format!(
                "guests in {free}: the node routes to {} otherwise",
                row.subnet
            ),
        );
        let revision = tx.emit(&event)?;
        tx.set_node_subnet(row.id, free, revision)?;
        Ok(())
    }

    /// Notes that a node that was silent is heard of again.
    pub(crate) fn back_again(
        &self,
        tx: &mut WriteTx<'_>,
        row: &NodeRow,
        cause: &Cause,
    ) -> Result<bool, ControlError> {
        if row.reachable {
            return Ok(false);
        }
        tx.emit(&note::event(
            self.now(),
            "node.ready",
            note::node(row.id, &row.name),
            cause,
            "it is heard of again",
        ))?;
        tx.set_node_reachable(row.id, true, self.now())?;
        Ok(true)
    }
}

fn name_taken(error: StoreError, hello: &Hello) -> ControlError {
    match error {
        StoreError::Taken(Taken::NodeName) => problems::node_name_taken(&hello.name).into(),
        other => other.into(),
    }
}

/// Whether the facts differ in more than loads. How full a pool is counts when it moved by a sixteenth.
pub(crate) fn matters(old: &NodeFacts, new: &NodeFacts) -> bool {
    let mut comparable = new.clone();
    comparable.used = old.used;
    for pool in &mut comparable.pools {
        if let Some(before) = old.pools.iter().find(|p| p.name == pool.name) {
            let moved = before.used_bytes.bytes().abs_diff(pool.used_bytes.bytes());
            if moved <= pool.size_bytes.bytes() / 16 {
                pool.used_bytes = before.used_bytes;
            }
            pool.promised_bytes = before.promised_bytes;
        }
    }
    comparable != *old
}
