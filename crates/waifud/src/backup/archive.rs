//! The backup file: a tar archive that begins with a manifest. Files are accepted only if their digests match, and only
//! under the names that a backup can contain.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use waifud_kit::sha256::{Hasher, hex};
use waifud_store::backup::Snapshot;

use super::{DATABASE, IMAGES, PKI};

/// The name of the manifest in the archive.
const MANIFEST: &str = "manifest.json";
/// The maximum size of a manifest, in bytes.
const MANIFEST_MAX: u64 = 16 << 20;
/// The format version; other versions are refused.
const FORMAT: u32 = 1;

/// The manifest of a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of waifud that wrote it.
    pub version: String,
    /// The schema version of the database.
    pub schema: u32,
    /// The newest revision in the database.
    pub revision: String,
    /// The time of the backup.
    pub created_at: jiff::Timestamp,
    /// The files in the archive, in this order.
    pub files: Vec<Entry>,
}

/// One file in a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The path, relative to the state directory.
    pub name: String,
    /// The size in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of the contents, in lower-case hexadecimal.
    pub sha256: String,
}

/// The regular files in `state/dir` and below, sorted by their names in a backup. Empty if the directory does not exist.
pub fn files_below(state: &Path, dir: &str) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let path = state.join(dir);
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot list {}", path.display()));
        }
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let name = format!("{dir}/{name}");
        if entry.file_type()?.is_dir() {
            files.extend(files_below(state, &name)?);
        } else if entry.file_type()?.is_file() {
            files.push((name, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

/// Writes the archive. Each file is read twice, first for its digest, and must not change in between.
pub fn write(
    out: &File,
    files: &[(String, PathBuf)],
    snapshot: Snapshot,
) -> anyhow::Result<Manifest> {
    let mut entries = Vec::with_capacity(files.len());
    for (name, path) in files {
        let (size_bytes, sha256) = digest(path)?;
        entries.push(Entry {
            name: name.clone(),
            size_bytes,
            sha256,
        });
    }
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        schema: snapshot.schema,
        revision: snapshot.revision.to_string(),
        created_at: jiff::Timestamp::now(),
        files: entries,
    };
    let mut archive = tar::Builder::new(io::BufWriter::new(out));
    let text = serde_json::to_vec_pretty(&manifest)?;
    archive.append_data(&mut header(text.len() as u64), MANIFEST, text.as_slice())?;
    for (entry, (_, path)) in manifest.files.iter().zip(files) {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let bytes = file.take(entry.size_bytes);
        archive.append_data(&mut header(entry.size_bytes), &entry.name, bytes)?;
    }
    archive.into_inner()?.flush()?;
    Ok(manifest)
}

/// Unpacks a backup into the directory `to`, which exists and is empty, and verifies every file.
pub fn read(from: &File, to: &Path) -> anyhow::Result<Manifest> {
    each_file(from, |entry, wanted| unpack(entry, wanted, to))
}

/// Verifies every file of a backup, and stores nothing.
pub fn verify(from: impl Read) -> anyhow::Result<Manifest> {
    each_file(from, |entry, wanted| copy(entry, wanted, |_part| Ok(())))
}

fn each_file<R: Read>(
    from: R,
    mut handle: impl FnMut(&mut tar::Entry<'_, io::BufReader<R>>, &Entry) -> anyhow::Result<()>,
) -> anyhow::Result<Manifest> {
    let mut archive = tar::Archive::new(io::BufReader::new(from));
    let mut entries = archive.entries().context("not a tar archive")?;
    let first = entries.next().context("the file is empty")?;
    let manifest = manifest(first.context("not a tar archive")?)?;
    let mut expected: BTreeMap<&str, &Entry> = manifest
        .files
        .iter()
        .map(|entry| (entry.name.as_str(), entry))
        .collect();
    for entry in entries {
        let mut entry = entry.context("the file is truncated")?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let wanted = expected
            .remove(name.as_str())
            .with_context(|| format!("the manifest does not list {name:?}"))?;
        handle(&mut entry, wanted)?;
    }
    if let Some((name, _)) = expected.first_key_value() {
        bail!("the file is truncated: {name} is missing");
    }
    let has_database = manifest.files.iter().any(|entry| entry.name == DATABASE);
    ensure!(has_database, "it contains no database");
    Ok(manifest)
}

fn manifest(mut entry: tar::Entry<'_, impl Read>) -> anyhow::Result<Manifest> {
    ensure!(
        entry.path()?.as_ref() == Path::new(MANIFEST) && entry.size() <= MANIFEST_MAX,
        "not a backup of waifud"
    );
    let mut text = String::new();
    entry
        .read_to_string(&mut text)
        .context("the file is truncated")?;
    let manifest: Manifest = serde_json::from_str(&text).context("cannot parse the manifest")?;
    ensure!(
        manifest.format == FORMAT,
        "format {} is not supported, only {FORMAT}; use the version of waifud that created the backup ({})",
        manifest.format,
        manifest.version
    );
    Ok(manifest)
}

fn unpack(entry: &mut impl Read, wanted: &Entry, to: &Path) -> anyhow::Result<()> {
    let path = safe(&wanted.name)
        .map(|name| to.join(name))
        .with_context(|| format!("invalid file name in the manifest: {:?}", wanted.name))?;
    if let Some(above) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(above)?;
    }
    let mut out = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    copy(entry, wanted, |part| {
        out.write_all(part)
            .with_context(|| format!("cannot write {}", path.display()))
    })?;
    out.sync_all()?;
    Ok(())
}

/// Reads a file of a backup completely, and refuses it if its size or digest is wrong.
fn copy(
    entry: &mut impl Read,
    wanted: &Entry,
    mut write: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut hash = Hasher::default();
    let mut size = 0_u64;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = entry.read(&mut buffer).context("the file is truncated")?;
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else {
            break;
        };
        hash.update(part);
        size += part.len() as u64;
        write(part)?;
    }
    ensure!(
        size == wanted.size_bytes && hex(&hash.finish()) == wanted.sha256,
        "{} is damaged",
        wanted.name
    );
    Ok(())
}

/// The path, if a backup can contain it: the database, or a file below one of the known directories.
fn safe(name: &str) -> Option<&Path> {
    let path = Path::new(name);
    let mut parts = path.components();
    let plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let first = parts.next()?.as_os_str().to_str()?;
    let below = parts.next().is_some();
    let known = (first == DATABASE && !below) || ([PKI, IMAGES].contains(&first) && below);
    (plain && known).then_some(path)
}

pub fn digest(path: &Path) -> anyhow::Result<(u64, String)> {
    let (size, hash) = waifud_kit::sha256::of_file(path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok((size, hex(&hash)))
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_kit::testing::temp_path;
    use waifud_types::{Incarnation, Revision};

    fn state() -> (tempfile::TempDir, Vec<(String, PathBuf)>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pki")).unwrap();
        fs::write(dir.path().join(DATABASE), vec![7; 700_000]).unwrap();
        fs::write(dir.path().join("pki/ca.key"), "secret").unwrap();
        fs::write(dir.path().join("pki/.partial"), "half").unwrap();
        let mut files = vec![(DATABASE.to_owned(), dir.path().join(DATABASE))];
        files.extend(files_below(dir.path(), PKI).unwrap());
        (dir, files)
    }

    fn packed(files: &[(String, PathBuf)]) -> (tempfile::TempDir, PathBuf) {
        let (dir, path) = temp_path("b.tar");
        let snapshot = Snapshot {
            revision: Revision {
                incarnation: Incarnation(1),
                number: 9,
            },
            schema: 2,
        };
        write(&File::create(&path).unwrap(), files, snapshot).unwrap();
        (dir, path)
    }

    #[test]
    fn a_backup_contains_the_files_that_were_written() {
        let (_state, files) = state();
        let (_dir, path) = packed(&files);
        let to = tempfile::tempdir().unwrap();
        let manifest = read(&File::open(&path).unwrap(), to.path()).unwrap();
        assert_eq!(manifest.files.len(), 2, "hidden files are left out");
        assert_eq!(
            fs::read(to.path().join(DATABASE)).unwrap(),
            vec![7; 700_000]
        );
        assert_eq!(fs::read(to.path().join("pki/ca.key")).unwrap(), b"secret");
    }

    #[test]
    fn a_truncated_or_modified_backup_is_refused() {
        let (_state, files) = state();
        let (_dir, path) = packed(&files);
        let complete = fs::read(&path).unwrap();
        for cut in [
            0,
            1,
            512,
            1024,
            2000,
            100_000,
            700_000,
            complete.len() - 2048,
        ] {
            fs::write(&path, &complete[..cut]).unwrap();
            let to = tempfile::tempdir().unwrap();
            assert!(
                read(&File::open(&path).unwrap(), to.path()).is_err(),
                "cut at {cut}"
            );
        }
        let in_key = complete.windows(6).position(|six| six == b"secret");
        let offsets = (0..complete.len() - 1024).step_by(31_337);
        let mut refused = 0;
        for at in offsets.chain(in_key) {
            let mut changed = complete.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            let to = tempfile::tempdir().unwrap();
            let verified = verify(File::open(&path).unwrap());
            // Padding and unused header fields may change; the unpacked files must not.
            if read(&File::open(&path).unwrap(), to.path()).is_ok() {
                let unpacked = |name| fs::read(to.path().join(name)).unwrap();
                assert_eq!(unpacked(DATABASE), vec![7; 700_000]);
                assert_eq!(unpacked("pki/ca.key"), b"secret");
                verified.unwrap();
            } else {
                verified.unwrap_err();
                refused += 1;
            }
        }
        // The manifest, 22 offsets in the database, and the one in the key.
        assert!(in_key.is_some() && refused > 20, "{refused}");
    }

    #[test]
    fn names_outside_the_state_directory_are_refused() {
        for name in [
            "../x",
            "/etc/passwd",
            "pki/../../x",
            "pki",
            "waifud.db/x",
            "lock",
            "",
        ] {
            assert_eq!(safe(name), None, "{name}");
        }
        for name in ["waifud.db", "pki/ca.key", "images/sha256-ab"] {
            assert!(safe(name).is_some(), "{name}");
        }
    }
}
