//! Authentication between machines: a private CA, certificates for waifud and its nodes, and TLS 1.3 for both ends.
//!
//! - [`Authority`] is the CA: a P-256 key that never leaves waifud's state directory. Nodes know it by its
//!   [`fingerprint`](Authority::fingerprint), the SHA-256 of its certificate.
//! - [`NodeKey`] is generated on the node and never leaves it; only its [`request`](NodeKey::request) does. The
//!   certificate contains the node's id in its SAN, as `waifud:node:UUID`, and nothing else.
//! - waifud's own certificate always has the name [`SERVER_NAME`]. Agents verify that name whatever address they connect
//!   to, so a new address needs no change on them; other clients verify the address as usual.
//!
//! Validity: clocks of machines at home can be wrong, and a node can be off for months. Everything is valid from 1970;
//! issued certificates are valid for [`YEARS`], the CA until 9999 (RFC 5280, section 4.1.2.5: no well-defined end). A
//! certificate is revoked through the node's row in waifud's database, which holds the only accepted key.

mod authority;
mod error;
mod files;
mod identity;
mod node;
mod node_to_node;
mod params;
mod peek_certificate;
mod pem;
mod tls;
mod validity;
mod verifier;

pub use authority::{Authority, public_key_pin, server_certificate};
pub use error::PkiError;
pub use files::write_durably;
pub use identity::Identity;
pub use node::{NodeKey, NodePeer, NodeRequest};
pub use node_to_node::{node_client_config, node_server_config};
pub use params::YEARS;
pub use peek_certificate::{PresentedCertificates, peek_config};
pub use pem::{as_openssl_prints, certificates, fingerprint, to_pem};
pub use tls::{SERVER_NAME, client_config, join_config, server_config, server_name};
pub use validity::valid_until;
