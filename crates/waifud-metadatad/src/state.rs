//! The state directory: locked by one process, with two secrets that are created at the first start.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::rand::{SecureRandom, SystemRandom};
use waifud_cloudinit::Tokens;
use waifud_wireguard::PrivateKey;

/// The lock of the directory, until it is dropped or the process ends.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "open is locked")] File);

/// Locks the directory. Creates it (0700) if it is missing.
pub fn lock(directory: &Path) -> Result<StateLock> {
    let name = directory.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot create {name}"))?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join("lock"))
        .with_context(|| format!("cannot open {name}/lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(StateLock(file)),
        Err(TryLockError::WouldBlock) => bail!("another waifud-metadatad is using {name}"),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {name}"))
        }
    }
}

/// The private key of this end of the tunnel. It survives restarts, so the node need not be configured again.
pub fn wireguard_key(directory: &Path) -> Result<PrivateKey> {
    let text = secret(&directory.join("wireguard.key"), || {
        Ok(PrivateKey::generate().to_base64())
    })?;
    text.parse()
        .with_context(|| format!("{}/wireguard.key is damaged", directory.display()))
}

/// The key of EC2's session tokens. It survives restarts, so guests' tokens stay valid.
pub fn token_key(directory: &Path) -> Result<Tokens> {
    let path = directory.join("token.key");
    let text = secret(&path, || {
        let mut bytes = [0; 32];
        if SystemRandom::new().fill(&mut bytes).is_err() {
            bail!("the system provides no random numbers");
        }
        Ok(STANDARD.encode(bytes))
    })?;
    STANDARD
        .decode(text.trim())
        .ok()
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .map(|bytes| Tokens::new(&bytes))
        .with_context(|| format!("{} is damaged", path.display()))
}

/// The secret in the file. Created durably (0600) if it is missing.
fn secret(path: &Path, make: impl FnOnce() -> Result<String>) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => return Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    }
    let text = make()?;
    waifud_kit::durable::replace(path, format!("{text}\n").as_bytes(), 0o600)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_created_once_and_readable_by_the_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let first = wireguard_key(directory.path()).unwrap().public_key();
        let again = wireguard_key(directory.path()).unwrap().public_key();
        assert_eq!(first, again);
        token_key(directory.path()).unwrap();
        token_key(directory.path()).unwrap();
        for name in ["wireguard.key", "token.key"] {
            let mode = fs::metadata(directory.path().join(name)).unwrap();
            assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_damaged_secret_stops_the_start_and_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("wireguard.key"), "c2VjcmV0").unwrap();
        let error = format!("{:#}", wireguard_key(directory.path()).unwrap_err());
        assert!(error.contains("wireguard.key is damaged"), "{error}");
        assert!(!error.contains("c2VjcmV0"));
    }

    #[test]
    fn a_second_process_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        let error = lock(directory.path()).unwrap_err();
        assert!(error.to_string().contains("another"), "{error}");
        drop(held);
        lock(directory.path()).unwrap();
    }
}
