//! Clients of the fabric, which every node receives with its own configuration.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rusqlite::Row;
use waifud_types::{Name, Revision, Timestamp};

use crate::codec::{corrupt, name, time, to_i64};
use crate::nodes::subnet;
use crate::{ReadTx, StoreError, Topic, WriteTx};

/// A stored client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FabricClientRow {
    /// Its name.
    pub name: Name,
    /// Its WireGuard public key in base64.
    pub public_key: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// When it was added.
    pub created_at: Timestamp,
}

impl ReadTx<'_> {
    /// All clients, sorted by name.
    pub fn fabric_clients(&self) -> Result<Vec<FabricClientRow>, StoreError> {
        self.all("SELECT * FROM fabric_clients ORDER BY name", [], client)
    }

    /// The network that clients' addresses are from; `None` before the first client.
    pub fn client_subnet(&self) -> Result<Option<Ipv4Net>, StoreError> {
        self.first("SELECT subnet FROM client_subnet", [], subnet)
    }

    /// Names of the nodes that joined after a time.
    pub fn nodes_joined_after(&self, at: Timestamp) -> Result<Vec<Name>, StoreError> {
        self.all(
            "SELECT name FROM nodes WHERE joined_at > ?1 ORDER BY name",
            [at.as_microsecond()],
            |row| name(row, "name"),
        )
    }
}

impl WriteTx<'_> {
    /// Reserves the network that clients' addresses are from.
    pub fn set_client_subnet(&mut self, subnet: Ipv4Net) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO client_subnet (id, subnet) VALUES (1, ?1)")?
            .execute([subnet.to_string()])?;
        Ok(())
    }

    /// Adds a client. `revision` is that of the event about this change.
    pub fn insert_fabric_client(
        &mut self,
        new: &FabricClientRow,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO fabric_clients (name, public_key, address, created_at) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((
                new.name.as_str(),
                &new.public_key,
                new.address.to_string(),
                new.created_at.as_microsecond(),
            ))?;
        self.send_clients(revision)
    }

    /// Removes a client. `revision` is that of the event about this change.
    pub fn remove_fabric_client(
        &mut self,
        name: &Name,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM fabric_clients WHERE name = ?1")?
            .execute([name.as_str()])?;
        self.send_clients(revision)
    }

    /// Sends all nodes their configuration again.
    fn send_clients(&mut self, revision: Revision) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE nodes SET slice_revision = ?1")?
            .execute([to_i64(revision.number)])?;
        self.touch(Topic::Cluster);
        Ok(())
    }
}

fn client(row: &Row<'_>) -> Result<FabricClientRow, StoreError> {
    let address: String = row.get("address")?;
    Ok(FabricClientRow {
        name: name(row, "name")?,
        public_key: row.get("public_key")?,
        address: address
            .parse()
            .map_err(|e: std::net::AddrParseError| corrupt("address")(e.into()))?,
        created_at: time(row, "created_at")?,
    })
}
