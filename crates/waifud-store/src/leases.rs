//! Leases: the permanent MAC address of a nic, and its IP address, which is kept until the node has confirmed that the
//! guest is destroyed.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use waifud_types::{InstanceId, MacAddr};

use crate::codec::id16;
use crate::error::taken;
use crate::nodes::maybe_net;
use crate::{ReadTx, StoreError, Taken, WriteTx};

/// One lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseRow {
    /// The nic's index.
    pub nic: u32,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its address; `None` until it is placed.
    pub address: Option<Ipv4Addr>,
}

impl ReadTx<'_> {
    /// The assigned addresses of the subnet, ascending.
    pub fn taken_addresses(&self, subnet: Ipv4Net) -> Result<Vec<Ipv4Addr>, StoreError> {
        let addresses = self
            .conn
            .prepare_cached(
                "SELECT address FROM leases WHERE address BETWEEN ?1 AND ?2 ORDER BY address",
            )?
            .query_map(
                (u32::from(subnet.network()), u32::from(subnet.broadcast())),
                |row| row.get::<_, u32>(0).map(Ipv4Addr::from),
            )?
            .collect::<Result<_, _>>()?;
        Ok(addresses)
    }

    /// The first assigned address of a range, and its instance.
    pub fn owner_in(&self, range: Ipv4Net) -> Result<Option<(Ipv4Addr, InstanceId)>, StoreError> {
        self.first(
            "SELECT address, instance FROM leases WHERE address BETWEEN ?1 AND ?2
                  ORDER BY address LIMIT 1",
            (u32::from(range.network()), u32::from(range.broadcast())),
            |row| {
                let address = Ipv4Addr::from(row.get::<_, u32>("address")?);
                Ok((address, crate::codec::instance_id(row, "instance")?))
            },
        )
    }

    /// Whether a nic has the MAC address.
    pub fn mac_is_taken(&self, mac: MacAddr) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached("SELECT 1 FROM leases WHERE mac = ?1")?
            .exists([mac.bytes()])?)
    }

    /// The subnet that an address in use belongs to, if its instance is not on the node of that subnet.
    pub fn home_of(&self, address: Ipv4Addr) -> Result<Option<Ipv4Net>, StoreError> {
        let home = self.first(
            "SELECT i.home FROM leases l JOIN instances i ON i.id = l.instance WHERE l.address = ?1",
            [u32::from(address)],
            |row| maybe_net(row, "home"),
        )?;
        Ok(home.flatten().filter(|home| home.contains(&address)))
    }

    /// The instance with the address.
    pub fn address_owner(&self, address: Ipv4Addr) -> Result<Option<InstanceId>, StoreError> {
        self.first(
            "SELECT instance FROM leases WHERE address = ?1",
            [u32::from(address)],
            |row| crate::codec::instance_id(row, "instance"),
        )
    }
}

impl WriteTx<'_> {
    /// Assigns a MAC address to a nic.
    pub fn insert_lease(
        &mut self,
        instance: InstanceId,
        lease: &LeaseRow,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO leases (instance, nic, mac, address) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((
                id16(&instance),
                lease.nic,
                lease.mac.bytes(),
                lease.address.map(u32::from),
            ))
            .map_err(|e| taken(e, UNIQUE))?;
        Ok(())
    }

    /// Assigns an address to a nic.
    pub fn set_lease_address(
        &mut self,
        instance: InstanceId,
        nic: u32,
        address: Ipv4Addr,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE leases SET address = ?3 WHERE instance = ?1 AND nic = ?2")?
            .execute((id16(&instance), nic, u32::from(address)))
            .map_err(|e| taken(e, UNIQUE))?;
        Ok(())
    }

    /// Removes the address of a nic.
    pub fn clear_lease_address(
        &mut self,
        instance: InstanceId,
        nic: u32,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE leases SET address = NULL WHERE instance = ?1 AND nic = ?2")?
            .execute((id16(&instance), nic))?;
        Ok(())
    }
}

const UNIQUE: &[(&str, Taken)] = &[
    ("leases.mac", Taken::Mac),
    ("leases.address", Taken::Address),
];
