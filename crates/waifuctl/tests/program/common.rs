//! A waifud in the process of a test.

use std::path::Path;
use std::sync::Arc;

use waifud_control::env::{SystemClock, SystemEntropy};
use waifud_control::{Control, ControlConfig};
use waifud_store::{Mode, Store};
use waifud_types::Incarnation;

/// Starts the control server with its state in `dir`.
pub async fn control(dir: &Path) -> Control {
    control_at(dir, Vec::new()).await
}

/// Starts the control server with its state in `dir` and these URLs.
pub async fn control_at(dir: &Path, addresses: Vec<String>) -> Control {
    let threads = Mode::Threads { readers: 2 };
    let store = Store::open(&dir.join("waifud.db"), threads, Incarnation(1)).unwrap();
    let config = ControlConfig {
        addresses,
        ..ControlConfig::new(dir.to_owned())
    };
    let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
    Control::new(store, config, clock, entropy).await.unwrap()
}
