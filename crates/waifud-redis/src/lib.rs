//! Redis as a cache of encrypted bundles.
//!
//! ```text
//!  PREFIX:bundle:DIGEST    a bundle, encrypted, named by its digest
//!  PREFIX:contents         a text that waifud changes with each write; another one, or none, means that Redis was emptied
//!                          or has older contents
//! ```
//!
//! waifud writes, metadata services only read. What is in Redis is not trusted: a bundle is verified by its digest, and can be
//! opened only with its key, which Redis never has. So Redis can fail or lie without any effect except that bundles are
//! fetched elsewhere.
//!
//! Every call ends within the limits that the connection was made with. A connection on which a call failed is not used
//! again; its owner connects anew. Services see the traits [`Connector`] and [`Connection`]. The feature `client` has their
//! implementation, and `testing` a real `redis-server` for tests.

#[cfg(feature = "client")]
mod client;
mod endpoint;
#[cfg(feature = "testing")]
pub mod testing;
mod trouble;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
pub use waifud_api::agent::RedisAccess;
use waifud_types::Digest;

#[cfg(feature = "client")]
pub use client::{Redis, check_ca};
pub use endpoint::{Endpoint, InvalidRedisUrl, check_prefix};
pub use trouble::Trouble;

/// The time limits of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// For connecting, with TLS and authentication.
    pub connect: Duration,
    /// For each call.
    pub answer: Duration,
}

/// Makes connections.
#[async_trait]
pub trait Connector: Send + Sync {
    /// Connects and authenticates.
    async fn connect(
        &self,
        access: &RedisAccess,
        limits: Limits,
    ) -> Result<Arc<dyn Connection>, Trouble>;
}

/// An authenticated connection.
#[async_trait]
pub trait Connection: Send + Sync {
    /// Checks that Redis answers.
    async fn ping(&self) -> Result<(), Trouble>;

    /// Reads bundles of these sizes, in this order. `None` where there is none. The bytes are not verified, but there is at
    /// most one more than the size.
    async fn read(&self, wanted: &[(Digest, u64)]) -> Result<Vec<Option<Bytes>>, Trouble>;

    /// The names of all bundles.
    async fn list(&self) -> Result<BTreeSet<Digest>, Trouble>;

    /// Writes bundles, or replaces them.
    async fn write(&self, bundles: Vec<(Digest, Vec<u8>)>) -> Result<(), Trouble>;

    /// Removes bundles.
    async fn remove(&self, bundles: Vec<Digest>) -> Result<(), Trouble>;

    /// The text at `PREFIX:contents`.
    async fn contents(&self) -> Result<Option<String>, Trouble>;

    /// Sets the text at `PREFIX:contents`.
    async fn set_contents(&self, text: &str) -> Result<(), Trouble>;

    /// Whether this user may write bundles.
    async fn may_write(&self) -> Result<bool, Trouble>;
}
