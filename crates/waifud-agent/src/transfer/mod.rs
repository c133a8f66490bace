//! Disks of instances that move from one node to another: sent ([`send`]) and received ([`receive`]), in the format of
//! [`waifud_api::disk_transfer`].

mod blocks;
pub(crate) mod receive;
pub(crate) mod send;
#[cfg(test)]
mod tests;
mod writer;
