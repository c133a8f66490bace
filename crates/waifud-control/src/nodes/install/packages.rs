//! The packages that new nodes install, packed from the files of this installation when one is first requested.
//!
//! A package of waifud contains the list of its files and its control files in [`DESCRIPTION`]. So waifud can make the
//! same package again on a machine without internet access, and without storing it twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};
use tempfile::NamedTempFile;
use tokio::sync::Mutex;
use waifud_api::join::PackageKind;

use super::ar::Archive;
use crate::ControlError;
use crate::nodes::problems;

/// The directory that describes the package, below the root of the installation.
const DESCRIPTION: &str = "usr/share/waifud/package";
/// The list of the files in the package, relative to the root, one per line.
const FILES: &str = "files";
/// The control file of the Debian package.
const CONTROL: &str = "control";
/// The scripts of the Debian package.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Makes packages, and keeps those that are made.
#[derive(Debug)]
pub struct NodePackages {
    root: PathBuf,
    dir: PathBuf,
    packed: Mutex<BTreeMap<&'static str, PathBuf>>,
}

/// What [`DESCRIPTION`] says about a package.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// The version of waifud.
    pub version: String,
    /// The architecture, as Debian names it.
    pub architecture: String,
    files: Vec<PathBuf>,
}

#[cfg(test)]
impl Description {
    pub(super) fn example(version: &str, architecture: &str) -> Self {
        Self {
            version: version.to_owned(),
            architecture: architecture.to_owned(),
            files: Vec::new(),
        }
    }
}

impl NodePackages {
    /// Packages of the installation below `root`, stored in `dir`.
    pub fn new(root: PathBuf, dir: PathBuf) -> Self {
        Self {
            root,
            dir,
            packed: Mutex::default(),
        }
    }

    /// Describes the package. Fails if waifud was not installed from one.
    pub async fn description(&self) -> Result<Description, ControlError> {
        let root = self.root.clone();
        in_background(move || describe(&root)).await
    }

    /// The file of a package. Packs it first unless this was done since waifud was started and the file still exists.
    pub async fn package(&self, kind: PackageKind) -> Result<PathBuf, ControlError> {
        // Held meanwhile, so that two requests do not pack it twice.
        let mut packed = self.packed.lock().await;
        if let Some(ready) = packed.get(kind.as_str())
            && tokio::fs::try_exists(ready).await.unwrap_or(false)
        {
            return Ok(ready.clone());
        }
        let (root, dir) = (self.root.clone(), self.dir.clone());
        let ready = in_background(move || {
            let description = describe(&root)?;
            pack(&root, &description, kind, &dir)
                .map_err(ControlError::io(format!("packing {}", kind.as_str())))
        })
        .await?;
        packed.insert(kind.as_str(), ready.clone());
        Ok(ready)
    }
}

async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ControlError::Inconsistent("packing was aborted".to_owned()))?
}

fn describe(root: &Path) -> Result<Description, ControlError> {
    let dir = root.join(DESCRIPTION);
    let read = |name: &str| match fs::read_to_string(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(problems::not_packaged().into())
        }
        other => other.map_err(ControlError::io(format!(
            "reading {}",
            dir.join(name).display()
        ))),
    };
    let (control, files) = (read(CONTROL)?, read(FILES)?);
    let field = |name: &str| {
        let line = control.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned()).ok_or_else(|| {
            ControlError::Inconsistent(format!("{} has no {name}", dir.join(CONTROL).display()))
        })
    };
    let files: Vec<PathBuf> = files.lines().map(PathBuf::from).collect();
    let is_inside = |path: &PathBuf| {
        let mut parts = path.components();
        parts.all(|part| matches!(part, Component::Normal(_)))
    };
    if !files.iter().all(is_inside) {
        return Err(ControlError::Inconsistent(format!(
            "{} contains a path outside of the installation",
            dir.join(FILES).display()
        )));
    }
    Ok(Description {
        version: field("Version:")?,
        architecture: field("Architecture:")?,
        files,
    })
}

fn pack(
    root: &Path,
    description: &Description,
    kind: PackageKind,
    dir: &Path,
) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let Description {
        version,
        architecture,
        files,
    } = description;
    let name = match kind {
        PackageKind::Deb => format!("waifud_{version}_{architecture}.deb"),
        PackageKind::Tarball => format!("waifud-{version}-{architecture}.tar.gz"),
    };
    let path = dir.join(name);
    remove_former(dir, version)?;
    // Removed if this fails.
    let file = NamedTempFile::new_in(dir)?;
    let out = BufWriter::new(file);
    let out = match kind {
        PackageKind::Deb => {
            let mut archive = Archive::new(out)?;
            archive.add("debian-binary", |out| out.write_all(b"2.0\n"))?;
            archive.add("control.tar.gz", |out| control_files(root, out))?;
            archive.add("data.tar.gz", |out| tree(root, files, "", out))?;
            archive.into_inner()
        }
        PackageKind::Tarball => {
            let mut out = out;
            tree(
                root,
                files,
                &format!("waifud-{version}-{architecture}/"),
                &mut out,
            )?;
            out
        }
    };
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.persist(&path)?;
    Ok(path)
}

/// Removes packages of other versions, and what an interrupted attempt left.
fn remove_former(dir: &Path, version: &str) -> io::Result<()> {
    let present = [format!("waifud_{version}_"), format!("waifud-{version}-")];
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !present.iter().any(|prefix| name.starts_with(prefix)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The control files of a Debian package.
fn control_files(root: &Path, out: &mut impl Write) -> io::Result<()> {
    let dir = root.join(DESCRIPTION);
    let mut tar = tar::Builder::new(GzEncoder::new(out, Compression::fast()));
    for name in std::iter::once(CONTROL).chain(SCRIPTS) {
        let mode = if name == CONTROL { 0o644 } else { 0o755 };
        file(&mut tar, &dir.join(name), name, mode)?;
    }
    tar.into_inner()?.finish()?;
    Ok(())
}

/// The files with the directories above them.
fn tree(root: &Path, files: &[PathBuf], prefix: &str, out: &mut impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(GzEncoder::new(out, Compression::fast()));
    let above = files.iter().flat_map(|path| path.ancestors().skip(1));
    let directories: BTreeSet<&Path> = above.filter(|path| *path != Path::new("")).collect();
    for path in directories {
        directory(&mut tar, &format!("{prefix}{}/", path.display()))?;
    }
    for path in files {
        let from = root.join(path);
        let mode = fs::metadata(&from)?.permissions().mode() & 0o777;
        file(
            &mut tar,
            &from,
            &format!("{prefix}{}", path.display()),
            mode,
        )?;
    }
    tar.into_inner()?.finish()?;
    Ok(())
}

fn header(kind: EntryType, size: u64, mode: u32) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root")?;
    header.set_groupname("root")?;
    Ok(header)
}

fn directory(tar: &mut tar::Builder<impl Write>, name: &str) -> io::Result<()> {
    let mut header = header(EntryType::Directory, 0, 0o755)?;
    header.set_mtime(0);
    tar.append_data(&mut header, name, io::empty())
}

fn file(tar: &mut tar::Builder<impl Write>, from: &Path, name: &str, mode: u32) -> io::Result<()> {
    let open = File::open(from)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", from.display())))?;
    let metadata = open.metadata()?;
    let mut header = header(EntryType::Regular, metadata.len(), mode)?;
    let modified = metadata.modified().ok();
    let seconds = modified.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    header.set_mtime(seconds.map_or(0, |since| since.as_secs()));
    tar.append_data(&mut header, name, open)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// An installation with one program.
    fn installation(root: &Path) {
        let put = |path: &str, text: &str, mode: u32| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        put("usr/sbin/waifud-agentd", "a program", 0o755);
        put("usr/share/doc/waifud/copyright", "a licence", 0o644);
        let control = "Package: waifud\nVersion: 1.2.3\nArchitecture: amd64\nMaintainer: x <x@localhost>\n\
            Description: a package\n";
        put("usr/share/waifud/package/control", control, 0o644);
        let files = "usr/sbin/waifud-agentd\nusr/share/doc/waifud/copyright\n";
        put("usr/share/waifud/package/files", files, 0o644);
        for script in SCRIPTS {
            put(
                &format!("usr/share/waifud/package/{script}"),
                "#!/bin/sh\n",
                0o755,
            );
        }
    }

    fn printed(program: &str, words: &[&str], file: &Path) -> String {
        let output = Command::new(program)
            .args(words)
            .arg(file)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {text}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[tokio::test]
    async fn the_packages_contain_the_installed_files_and_are_packed_once() {
        let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        installation(root.path());
        let packages = NodePackages::new(root.path().to_owned(), dir.path().join("packages"));
        let description = packages.description().await.unwrap();
        assert_eq!(
            (
                description.version.as_str(),
                description.architecture.as_str()
            ),
            ("1.2.3", "amd64")
        );
        let tarball = packages.package(PackageKind::Tarball).await.unwrap();
        let listed = printed("tar", &["-tvzf"], &tarball);
        for line in [
            "-rwxr-xr-x root/root         9 ",
            " waifud-1.2.3-amd64/usr/sbin/waifud-agentd\n",
            " waifud-1.2.3-amd64/usr/sbin/\n",
        ] {
            assert!(listed.contains(line), "{line}: {listed}");
        }

        let deb = packages.package(PackageKind::Deb).await.unwrap();
        let name = deb.file_name().unwrap();
        assert_eq!(name, "waifud_1.2.3_amd64.deb");
        let listed = printed("dpkg-deb", &["--contents"], &deb);
        assert!(listed.contains(" usr/sbin/waifud-agentd\n"), "{listed}");
        let control = printed("dpkg-deb", &["--info"], &deb);
        assert!(control.contains(" Version: 1.2.3\n"), "{control}");
        assert!(control.contains("postinst"), "{control}");

        // Packed once: a file that changes afterwards is not in it.
        let before = fs::read(&deb).unwrap();
        fs::write(root.path().join("usr/sbin/waifud-agentd"), "another one").unwrap();
        assert_eq!(packages.package(PackageKind::Deb).await.unwrap(), deb);
        assert_eq!(fs::read(&deb).unwrap(), before);
        let files = || {
            let entries = fs::read_dir(dir.path().join("packages")).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<BTreeSet<_>>()
        };
        let both = ["waifud-1.2.3-amd64.tar.gz", "waifud_1.2.3_amd64.deb"].map(str::to_owned);
        assert_eq!(files(), BTreeSet::from(both));

        // A package whose file is missing is packed again, and packages of other versions are removed.
        fs::remove_file(&deb).unwrap();
        for former in ["waifud_1.2.2_amd64.deb", ".tmpinterrupted"] {
            fs::write(deb.with_file_name(former), "").unwrap();
        }
        assert_eq!(packages.package(PackageKind::Deb).await.unwrap(), deb);
        assert!(deb.exists());
        assert_eq!(files().len(), 2, "{:?}", files());
    }

    #[tokio::test]
    async fn an_installation_without_a_description_and_paths_outside_are_refused() {
        let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let packages = NodePackages::new(root.path().to_owned(), dir.path().to_owned());
        let error = packages.description().await.unwrap_err();
        assert!(error.to_string().contains("package"), "{error}");
        installation(root.path());
        let files = root.path().join(DESCRIPTION).join(FILES);
        for bad in ["../etc/shadow\n", "/etc/shadow\n", "usr/../../etc/shadow\n"] {
            fs::write(&files, bad).unwrap();
            let error = packages.package(PackageKind::Deb).await.unwrap_err();
            assert!(error.to_string().contains("outside"), "{bad}: {error}");
        }
        // A listed file that is missing leaves no partial package.
        fs::write(&files, "usr/sbin/nothing\n").unwrap();
        packages.package(PackageKind::Deb).await.unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
