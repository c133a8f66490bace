//! The addresses of an instance.

use waifud_types::status::InstanceStatus;

/// The address that `waifuctl ip` prints.
pub fn primary_address(status: &InstanceStatus) -> Option<String> {
    let addresses = &status.addresses;
    addresses
        .iter()
        .find(|a| a.primary)
        .or_else(|| addresses.first())
        .map(|a| a.address.to_string())
}

/// The message of the condition that the guest uses another address than the primary one.
pub fn another_address(status: &InstanceStatus) -> Option<&str> {
    let mut conditions = status.conditions.iter();
    let condition =
        conditions.find(|c| c.kind == "address" && !c.ok && c.reason == "another-address")?;
    Some(&condition.message)
}
