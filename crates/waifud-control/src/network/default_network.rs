//! The routed network that every node has.

use waifud_types::Name;

/// The name of the routed network of each node.
pub const DEFAULT: &str = "default";

/// Whether the network is `default`.
pub fn is_default(network: &Name) -> bool {
    network.as_str() == DEFAULT
}
