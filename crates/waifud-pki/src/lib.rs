//! Who is who between machines: a private CA, certificates for waifud and its nodes, and TLS 1.3 on both ends.
//!
//! - [`Authority`] is the CA: a P-256 key that never leaves waifud's state directory. Nodes know it by its
//!   [`fingerprint`](Authority::fingerprint), the SHA-256 of its certificate.
//! - [`NodeKey`] is made on the node and never leaves it; only its [`request`](NodeKey::request) does. The certificate
//!   names the node in its SAN, as `waifud:node:UUID`, and says nothing else.
//! - waifud's own certificate always has the name [`SERVER_NAME`]. Agents ask for that one whatever address they dial,
//!   so a new address needs nothing of them; people's programs check the address as everywhere.
//!
//! Dates: clocks of machines at home lie, and a node may be off for months. Everything is valid since 1970; what is
//! issued is valid for [`YEARS`], the CA until 9999 (RFC 5280, section 4.1.2.5: no end that is known). What takes a
//! certificate back is the node's row in waifud's database, which holds the one key that is accepted.

mod authority;
mod error;
mod files;
mod identity;
mod node;
mod params;
mod peek_certificate;
mod pem;
mod tls;
mod validity;

pub use authority::{Authority, server_certificate};
pub use error::PkiError;
pub use files::write_durably;
pub use identity::Identity;
pub use node::{NodeKey, NodePeer, NodeRequest};
pub use params::YEARS;
pub use peek_certificate::{Shown, look_config};
pub use pem::{certificates, fingerprint, to_pem};
pub use tls::{SERVER_NAME, client_config, join_config, server_config, server_name};
pub use validity::valid_until;
