//! The machine itself: which boot of it this is, and whether it is going down.

use async_trait::async_trait;
use waifud_types::BootId;

/// Knows whether the host is going down. Asked when a guest went off and before one is started, so a look may cost a
/// little.
#[async_trait]
pub trait HostPower: Send + Sync {
    /// Whether it is going down: guests that go off now were not switched off by anybody's wish, and none is started.
    async fn is_stopping(&self) -> bool;

    /// Which boot of the machine this is; null where the kernel has none to tell.
    fn boot_id(&self) -> Option<BootId>;
}
