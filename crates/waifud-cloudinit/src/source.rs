//! The data of an instance that all of its documents are rendered from.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use waifud_types::template::Datasource;
use waifud_types::{InstanceId, MacAddr, Name, Secret};

/// The input of [`crate::render`]: everything that the documents of one instance contain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The instance.
    pub instance: InstanceId,
    /// cloud-init's instance-id, from [`instance_id`]. Never the SMBIOS UUID: while both are equal, cloud-init's OpenStack
    /// datasource keeps its cache and does not read edited user-data at the next boot.
    pub instance_id: String,
    /// The host name, without a domain.
    pub hostname: Name,
    /// The domain after the host name, for example `waifu.internal`; `None` for a host name without a domain.
    pub domain: Option<String>,
    /// The availability zone: the node's name, or `waifud`.
    pub availability_zone: String,
    /// Public SSH keys in OpenSSH's one-line format, already validated as [`SshKey`](crate::SshKey).
    pub ssh_keys: Vec<String>,
    /// The user-data as the user provided it, checked by [`validate_user_data`](crate::validate_user_data).
    pub user_data: Option<Secret<String>>,
    /// What waifud adds as vendor-data.
    pub vendor_data: VendorOptions,
    /// How the guest finds the documents. All formats are always rendered, but documents that only one datasource needs and
    /// that would be requested at every boot are left out for the others.
    pub datasource: Datasource,
    /// Its network interfaces; the first has the default route.
    pub nics: Vec<NicDoc>,
    /// The user that cloud-init creates instead of the image's default user; `None` for the image's.
    pub default_user: Option<Name>,
}

impl Source {
    /// The host name with its domain, if there is one.
    pub(crate) fn fqdn(&self) -> String {
        match self.domain.as_deref().filter(|domain| !domain.is_empty()) {
            Some(domain) => format!("{}.{domain}", self.hostname),
            None => self.hostname.to_string(),
        }
    }

    /// The documents of a first boot with waifud's vendor-data, and without domain, keys, user-data and network interfaces.
    #[must_use]
    pub fn new(instance: InstanceId, hostname: Name) -> Self {
        Self {
            instance,
            instance_id: instance_id(instance, 1),
            hostname,
            domain: None,
            availability_zone: "waifud".to_owned(),
            ssh_keys: Vec::new(),
            user_data: None,
            vendor_data: VendorOptions::default(),
            datasource: Datasource::Openstack,
            nics: Vec::new(),
            default_user: None,
        }
    }
}

/// The contents of vendor-data. cloud-init merges vendor-data and user-data; user-data takes precedence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VendorOptions {
    /// Report to the metadata service once cloud-init has finished.
    pub phone_home: bool,
    /// Report each of cloud-init's modules to the metadata service, at every boot.
    pub reports: bool,
    /// Whether the node accepts both on [`REPORT_PORT`](waifud_types::template::REPORT_PORT); otherwise on port 80.
    pub report_port: bool,
}

impl Default for VendorOptions {
    fn default() -> Self {
        Self {
            phone_home: true,
            reports: true,
            report_port: true,
        }
    }
}

/// A network interface in the documents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicDoc {
    /// The name that the guest should use, for example `eth0`. Not all formats support it.
    pub name: Name,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its address; `None` on networks where waifud does not assign addresses.
    pub address: Option<NicAddress>,
    /// The MTU in bytes; `None` if the guest decides.
    pub mtu: Option<u16>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
}

/// The address of a network interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NicAddress {
    /// The address, with the prefix length of the subnet.
    pub net: Ipv4Net,
    /// Whether the guest configures it statically, instead of with DHCP.
    pub is_static: bool,
    /// The default gateway, if there is one.
    pub gateway: Option<Ipv4Addr>,
}

impl NicDoc {
    /// The address that the guest configures statically.
    pub(crate) fn static_address(&self) -> Option<NicAddress> {
        self.address.filter(|address| address.is_static)
    }
}

/// cloud-init's instance-id of the `run`-th first boot of `instance`: `i-UUID-RUN`.
///
/// After a change of the instance-id, cloud-init treats the next boot as a first boot. So `run` (from 1) is incremented
/// only when a user requests that.
pub fn instance_id(instance: InstanceId, run: u64) -> String {
    format!("i-{instance}-{run}")
}

/// The instance-id after `current`, with which the next boot is a first boot again.
pub fn next_instance_id(instance: InstanceId, current: &str) -> String {
    let run = current
        .rsplit('-')
        .next()
        .and_then(|run| run.parse::<u64>().ok())
        .unwrap_or(1);
    instance_id(instance, run.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_a_different_instance_id() {
        let instance = InstanceId::generate();
        let first = instance_id(instance, 1);
        let second = next_instance_id(instance, &first);
        assert_eq!(second, instance_id(instance, 2));
        let ninth = instance_id(instance, 9);
        assert_eq!(
            next_instance_id(instance, &ninth),
            instance_id(instance, 10)
        );
    }
}
