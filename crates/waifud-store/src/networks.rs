//! Networks: their names, their bridges on the nodes, and the instances that use them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rusqlite::Row;
use waifud_types::spec::{InstanceSpec, NicSpec};
use waifud_types::status::{AddressSource, InstanceStatus};
use waifud_types::{InstanceId, Name, Timestamp};

use crate::codec::{count, id16, json, maybe_time, name};
use crate::error::taken;
use crate::{ReadTx, StoreError, Taken, WriteTx};

/// A stored network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkRow {
    /// Its name.
    pub name: Name,
    /// The bridge on nodes; `None` for `default`, which every node routes.
    pub bridge: Option<String>,
    /// When it was added; `None` for `default`.
    pub created_at: Option<Timestamp>,
    /// How many instances have a nic on it.
    pub used_by: u64,
}

/// One nic of an instance on some network.
#[derive(Clone, PartialEq, Debug)]
pub struct NicRow {
    /// The instance's name.
    pub owner: Name,
    /// The nic.
    pub nic: NicSpec,
    /// Addresses observed at the instance on that network.
    pub seen: Vec<IpAddr>,
}

const SELECT: &str =
    "SELECT *, (SELECT count(*) FROM network_users WHERE network = name) AS used_by
   FROM networks";

impl ReadTx<'_> {
    /// One network.
    pub fn network(&self, wanted: &str) -> Result<Option<NetworkRow>, StoreError> {
        self.first(&format!("{SELECT} WHERE name = ?1"), [wanted], network)
    }

    /// Whether the network exists.
    pub fn is_network(&self, wanted: &str) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached("SELECT 1 FROM networks WHERE name = ?1")?
            .exists([wanted])?)
    }

    /// Networks by name, after `after`.
    pub fn networks(&self, after: &str, limit: u32) -> Result<Vec<NetworkRow>, StoreError> {
        self.all(
            &format!("{SELECT} WHERE name > ?1 ORDER BY name LIMIT ?2"),
            (after, limit),
            network,
        )
    }

    /// The bridge of every named network.
    pub fn bridges(&self) -> Result<BTreeMap<Name, String>, StoreError> {
        self.all(
            "SELECT name, bridge FROM networks WHERE bridge IS NOT NULL",
            [],
            |row| Ok((name(row, "name")?, row.get("bridge")?)),
        )
    }

    /// All addresses that instances have or may have on a network: their nics there, and the observed addresses.
    pub fn nics_on(&self, network: &Name) -> Result<Vec<NicRow>, StoreError> {
        let mut nics = Vec::new();
        let mut statement = self.conn.prepare_cached(
            "SELECT i.name, i.spec, i.status
               FROM network_users u JOIN instances i ON i.id = u.instance WHERE u.network = ?1",
        )?;
        let mut rows = statement.query([network.as_str()])?;
        while let Some(row) = rows.next()? {
            let owner = name(row, "name")?;
            let spec: InstanceSpec = json(row, "spec")?;
            let status: InstanceStatus = json(row, "status")?;
            let seen = status.addresses.iter();
            let seen: Vec<_> = seen
                .filter(|seen| seen.network == *network && seen.source == AddressSource::Observed)
                .map(|seen| seen.address)
                .collect();
            let its = spec.nics.into_iter().filter(|nic| nic.network == *network);
            nics.extend(its.map(|nic| NicRow {
                owner: owner.clone(),
                nic,
                seen: seen.clone(),
            }));
        }
        Ok(nics)
    }

    /// Names of up to `limit` instances that have a nic on the network.
    pub fn network_users(&self, network: &Name, limit: u32) -> Result<Vec<Name>, StoreError> {
        self.all(
            "SELECT i.name FROM network_users u JOIN instances i ON i.id = u.instance
                  WHERE u.network = ?1 ORDER BY i.name LIMIT ?2",
            (network.as_str(), limit),
            |row| name(row, "name"),
        )
    }
}

impl WriteTx<'_> {
    /// Adds a network. `Taken` if another network has its name or its bridge.
    pub fn insert_network(
        &mut self,
        name: &Name,
        bridge: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("INSERT INTO networks (name, bridge, created_at) VALUES (?1, ?2, ?3)")?
            .execute((name.as_str(), bridge, at.as_microsecond()))
            .map_err(|e| {
                taken(
                    e,
                    &[
                        ("networks.name", Taken::NetworkName),
                        ("networks.bridge", Taken::Bridge),
                    ],
                )
            })?;
        Ok(())
    }

    /// Deletes an unused network; the database refuses to delete others.
    pub fn remove_network(&mut self, name: &Name) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM networks WHERE name = ?1")?
            .execute([name.as_str()])?;
        Ok(())
    }

    /// Records that an instance has a nic on the network, until the instance is removed.
    pub fn use_network(&mut self, network: &Name, instance: InstanceId) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT OR IGNORE INTO network_users (network, instance) VALUES (?1, ?2)",
            )?
            .execute((network.as_str(), id16(&instance)))?;
        Ok(())
    }
}

fn network(row: &Row<'_>) -> Result<NetworkRow, StoreError> {
    Ok(NetworkRow {
        name: name(row, "name")?,
        bridge: row.get("bridge")?,
        created_at: maybe_time(row, "created_at")?,
        used_by: count(row, "used_by")?,
    })
}
