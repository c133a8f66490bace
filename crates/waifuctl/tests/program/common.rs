//! A waifud in the process of a test.

use std::sync::Arc;

use tempfile::TempDir;
use waifud_control::env::{SystemClock, SystemEntropy};
use waifud_control::{Control, ControlConfig};
use waifud_store::{Mode, Store};
use waifud_types::Incarnation;

/// Starts the control server with its state in a temporary directory and with these URLs. Its installation, which is empty,
/// is the directory `installation` there.
pub async fn control(addresses: Vec<String>) -> (TempDir, Control) {
    let dir = tempfile::tempdir().unwrap();
    let threads = Mode::Threads { readers: 2 };
    let path = dir.path().join("waifud.db");
    let store = Store::open(&path, threads, Incarnation(1)).unwrap();
    let config = ControlConfig {
        addresses,
        installation: dir.path().join("installation"),
        ..ControlConfig::new(dir.path().to_owned())
    };
    let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
    let control = Control::new(store, config, clock, entropy).await.unwrap();
    (dir, control)
}
