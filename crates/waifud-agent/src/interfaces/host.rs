//! The machine: its boot id, and whether it is shutting down.

use async_trait::async_trait;
use waifud_types::{BootId, Digest};

/// The state of the host. It is queried when a guest went off and before one is started, so a query may be slow.
#[async_trait]
pub trait HostPower: Send + Sync {
    /// Whether the host is shutting down. Guests that go off then were not stopped by a user, and none is started.
    async fn is_stopping(&self) -> bool;

    /// The id of the current boot; `None` if the kernel provides none.
    fn boot_id(&self) -> Option<BootId>;

    /// A hash of what identifies the hardware; `None` if the firmware says nothing.
    fn hardware(&self) -> Option<Digest>;
}
