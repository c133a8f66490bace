//! Backups in directories that other users can write to.

use std::os::unix::fs::symlink;

use waifud_store::{Mode, Store};
use waifud_types::Incarnation;

use super::*;

fn config(dir: &Path) -> Config {
    let state_dir = dir.join("state");
    std::fs::create_dir(&state_dir).unwrap();
    Store::open(&state_dir.join(DATABASE), Mode::Inline, Incarnation(1)).unwrap();
    Config {
        state_dir,
        ..Config::default()
    }
}

fn arguments(file: PathBuf) -> BackupArguments {
    BackupArguments {
        file: Some(file),
        to: None,
        every: None,
        keep: None,
        with_images: false,
        scheduled: false,
    }
}

#[test]
fn symbolic_links_at_or_next_to_the_target_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let file = dir.path().join("b.tar");
    symlink(&victim, dir.path().join("b.tar.partial")).unwrap();
    backup(&config, None, &arguments(file.clone())).unwrap();
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    assert!(file.symlink_metadata().unwrap().is_file());

    let dangling = dir.path().join("c.tar");
    symlink(dir.path().join("nowhere"), &dangling).unwrap();
    let error = backup(&config, None, &arguments(dangling)).unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
    assert!(!dir.path().join("nowhere").exists());
    let mut left = std::fs::read_dir(dir.path()).unwrap();
    let partial = |name: &str| name.starts_with(".waifud-backup-");
    assert!(!left.any(|entry| partial(&entry.unwrap().file_name().to_string_lossy())));
}
