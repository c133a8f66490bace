//! Nics that were removed from the spec of an instance, and whose node has not confirmed that yet. Their MAC address, their
//! address and their network stay in use.

use rusqlite::Row;
use waifud_types::spec::NicSpec;
use waifud_types::{Generation, InstanceId, Name};

use crate::codec::{count, id16, json, to_i64, to_json};
use crate::{ReadTx, StoreError, WriteTx};

/// A removed nic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemovedNicRow {
    /// The number of its lease.
    pub number: u32,
    /// The nic as it was in the spec.
    pub nic: NicSpec,
    /// The first generation of the spec without it.
    pub removed_at: Generation,
}

impl ReadTx<'_> {
    /// The removed nics of an instance, by number.
    pub fn removed_nics(&self, instance: InstanceId) -> Result<Vec<RemovedNicRow>, StoreError> {
        self.all(
            "SELECT * FROM leases WHERE instance = ?1 AND removed_nic IS NOT NULL ORDER BY nic",
            [id16(&instance)],
            removed_nic,
        )
    }
}

impl WriteTx<'_> {
    /// Records that a nic was removed from the spec. It has no name in DNS any more.
    pub fn set_nic_removed(
        &mut self,
        instance: InstanceId,
        row: &RemovedNicRow,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "UPDATE leases SET removed_nic = ?3, removed_at = ?4 WHERE instance = ?1 AND nic = ?2",
            )?
            .execute((
                id16(&instance),
                row.number,
                to_json("a nic", &row.nic)?,
                to_i64(row.removed_at.0),
            ))?;
        Ok(())
    }

    /// Records that a removed nic is in the spec again.
    pub fn restore_nic(&mut self, instance: InstanceId, number: u32) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "UPDATE leases SET removed_nic = NULL, removed_at = NULL WHERE instance = ?1 AND nic = ?2",
            )?
            .execute((id16(&instance), number))?;
        Ok(())
    }

    /// Frees the MAC address and the address of a nic.
    pub fn remove_lease(&mut self, instance: InstanceId, number: u32) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM leases WHERE instance = ?1 AND nic = ?2")?
            .execute((id16(&instance), number))?;
        Ok(())
    }

    /// Records that an instance has no nic on the network any more.
    pub fn leave_network(
        &mut self,
        network: &Name,
        instance: InstanceId,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM network_users WHERE network = ?1 AND instance = ?2")?
            .execute((network.as_str(), id16(&instance)))?;
        Ok(())
    }
}

fn removed_nic(row: &Row<'_>) -> Result<RemovedNicRow, StoreError> {
    Ok(RemovedNicRow {
        number: row.get("nic")?,
        nic: json(row, "removed_nic")?,
        removed_at: Generation(count(row, "removed_at")?),
    })
}
