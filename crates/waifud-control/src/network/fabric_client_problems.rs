//! Problems with clients of the fabric.

use ipnet::Ipv4Net;
use waifud_api::Problem;
use waifud_types::{FabricKind, Name};

use crate::problems;

/// Clients need a mesh.
pub fn no_mesh(kind: FabricKind) -> Problem {
    Problem::new(
        409,
        "no-mesh",
        format!("the fabric is {kind}; clients need the fabric wireguard"),
    )
    .hint("choose the fabric wireguard, or set routes to the guests on your router")
}

/// No client has the name.
pub fn unknown(name: &str) -> Problem {
    problems::not_found("fabric client", name)
        .hint("list the clients of the fabric: waifuctl fabric client list")
}

/// Another client has the name.
pub fn name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "name-taken",
        format!("a fabric client named {name} already exists"),
    )
    .field("name")
    .hint("choose another name, or remove that client first")
}

/// Another peer has the key.
pub fn key_taken(owner: &str) -> Problem {
    Problem::new(
        409,
        "key-taken",
        format!("{owner} already has this public key"),
    )
    .field("public_key")
    .hint("generate a key for each client")
}

/// The key does not protect anything.
pub fn zero_key() -> Problem {
    Problem::new(
        409,
        "unsafe-key",
        "the public key is zero, which protects nothing",
    )
    .field("public_key")
    .hint("generate a key with wg genkey | tee private | wg pubkey")
}

/// The text is not a WireGuard key.
pub fn invalid_key() -> Problem {
    Problem::new(
        422,
        "invalid-key",
        "a WireGuard public key is 32 bytes in base64 (44 characters)",
    )
    .field("public_key")
    .hint("print it with wg pubkey")
}

/// No network is left for clients.
pub fn no_subnet(range: Ipv4Net) -> Problem {
    Problem::new(
        409,
        "no-subnet",
        format!("the guests' range {range} has no free /24 left for clients"),
    )
    .hint("purge removed nodes, or set a larger guest_range in waifud.toml")
}

/// All addresses are in use.
pub fn no_address(network: Ipv4Net) -> Problem {
    Problem::new(
        409,
        "no-address",
        format!("all addresses of the clients' network {network} are in use"),
    )
    .hint("remove clients that are not used any more")
}
