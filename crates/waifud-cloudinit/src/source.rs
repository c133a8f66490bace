//! What is known of an instance before anything is rendered: the one source of all its documents.

use std::net::Ipv4Addr;

use waifud_types::template::Datasource;
use waifud_types::{InstanceId, MacAddr, Name, Secret};

/// Everything that an instance's documents are made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The instance.
    pub instance: InstanceId,
    /// cloud-init's instance-id, from [`instance_id`]. Never the SMBIOS UUID: cloud-init's OpenStack source keeps its
    /// cache while the two are equal, and edited user-data would not be read at the next boot.
    pub instance_id: String,
    /// The host name, without a domain.
    pub hostname: Name,
    /// The domain that follows the host name, such as `waifu.internal`; none leaves the host name bare.
    pub domain: Option<String>,
    /// Where it runs: the node's name, or `waifud`.
    pub availability_zone: String,
    /// Public keys in OpenSSH's one-line form, checked by [`SshKey`](crate::SshKey).
    pub ssh_keys: Vec<String>,
    /// The user-data as the person wrote it, checked by [`validate_user_data`](crate::validate_user_data).
    pub user_data: Option<Secret<String>>,
    /// What waifud itself asks of cloud-init.
    pub vendor_data: VendorOptions,
    /// How the guest finds them. All are rendered whatever it is; but what only one of them needs and every boot would
    /// ask for is left out of the others.
    pub datasource: Datasource,
    /// Its nics; the first has the default route.
    pub nics: Vec<NicDoc>,
    /// A user that cloud-init creates instead of the image's own default; none leaves the image's.
    pub default_user: Option<Name>,
}

/// What waifud itself asks of cloud-init. User-data wins over it, by cloud-init's own merging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VendorOptions {
    /// Report to the metadata service when cloud-init is done.
    pub phone_home: bool,
    /// Report each of cloud-init's modules to the metadata service, at every boot.
    pub reports: bool,
}

impl Default for VendorOptions {
    fn default() -> Self {
        Self {
            phone_home: true,
            reports: true,
        }
    }
}

/// One nic, as the guest is told about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicDoc {
    /// What the guest should call it, where it can be told, such as `eth0`.
    pub name: Name,
    /// Whether the guest gives itself the address; else it asks by DHCP.
    pub is_static: bool,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its fixed address; none on networks whose addresses are not ours to give.
    pub address: Option<Ipv4Addr>,
    /// Bits of the subnet's prefix, 0 to 32.
    pub prefix: u8,
    /// The default gateway, where it has one.
    pub gateway: Option<Ipv4Addr>,
    /// Bytes of an IP packet at most; none leaves it to the guest.
    pub mtu: Option<u16>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
}

/// cloud-init's instance-id of the `run`-th first boot of `instance`: `i-UUID-RUN`.
///
/// A changed instance-id makes the next boot a first boot. So `run` counts up (from 1) when somebody asks for that,
/// and at no other time.
pub fn instance_id(instance: InstanceId, run: u64) -> String {
    format!("i-{instance}-{run}")
}

/// The instance-id that follows `current`: with it the next boot is a first boot once more.
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
    fn each_run_has_an_instance_id_of_its_own() {
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
