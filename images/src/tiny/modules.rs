//! Kernel modules and their dependencies in load order. The dependencies are read from the modules (`depends=` in
//! `.modinfo`), because unpacked packages have no `modules.dep`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The kernel in the unpacked packages.
pub struct Kernel {
    packages: PathBuf,
    release: String,
    modules: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Kernel {
    /// Finds it by its directory of modules.
    pub fn find(packages: &Path) -> Result<Self> {
        let base = ["lib/modules", "usr/lib/modules"]
            .map(|directory| packages.join(directory))
            .into_iter()
            .find(|directory| directory.is_dir())
            .context("no kernel was unpacked")?;
        let mut releases: Vec<String> = fs::read_dir(&base)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect()
            })
            .with_context(|| format!("cannot list {}", base.display()))?;
        let release = releases.pop().context("no kernel was unpacked")?;
        ensure!(
            releases.is_empty(),
            "more than one kernel was unpacked: {release} and {}",
            releases.join(", ")
        );
        let directory = base.join(&release);
        let mut modules = BTreeMap::new();
        index(&directory, &mut modules)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        let list = directory.join("modules.builtin");
        let builtin = fs::read_to_string(&list)
            .with_context(|| format!("cannot read {}", list.display()))?
            .lines()
            .filter_map(|line| name_of(Path::new(line)))
            .collect();
        Ok(Self {
            packages: packages.to_owned(),
            release,
            modules,
            builtin,
        })
    }

    /// The compressed kernel.
    pub fn image(&self) -> PathBuf {
        self.packages.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The files of `wanted` and of their dependencies, dependencies first, without those that are built into the
    /// kernel.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let names = order(wanted, &|name| {
            if self.builtin.contains(name) {
                return Ok(None);
            }
            let path = self
                .modules
                .get(name)
                .with_context(|| format!("kernel {} has no module {name}", self.release))?;
            let module =
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            depends(&module)
                .map(Some)
                .with_context(|| format!("{} is not a plain module", path.display()))
        })?;
        Ok(names
            .iter()
            .filter_map(|name| self.modules.get(name).cloned())
            .collect())
    }
}

/// Sorts depth-first. `depends_on` returns `None` for modules that need no loading.
fn order(
    wanted: &[&str],
    depends_on: &dyn Fn(&str) -> Result<Option<Vec<String>>>,
) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        depends_on: &dyn Fn(&str) -> Result<Option<Vec<String>>>,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<String>,
    ) -> Result<()> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        if let Some(needed) = depends_on(name)? {
            for other in needed {
                visit(&other, depends_on, seen, ordered)?;
            }
            ordered.push(name.to_owned());
        }
        Ok(())
    }
    let mut seen = BTreeSet::new();
    let mut ordered = Vec::new();
    for name in wanted {
        visit(name, depends_on, &mut seen, &mut ordered)?;
    }
    Ok(ordered)
}

fn index(directory: &Path, modules: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, modules)?;
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(name) = name_of(&path)
        {
            modules.insert(name, path);
        }
    }
    Ok(())
}

/// A module's name has underscores where its file may have dashes.
fn name_of(path: &Path) -> Option<String> {
    Some(path.file_stem()?.to_str()?.replace('-', "_"))
}

/// The dependencies in a module; `None` if it contains no information (it is compressed, or not a module).
fn depends(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    // The section's first string has no zero byte before it in the section, but something precedes it in the file.
    let at = module.windows(KEY.len()).position(|bytes| bytes == KEY)? + KEY.len();
    let list = module.get(at..)?.split(|byte| *byte == 0).next()?;
    let list = std::str::from_utf8(list).ok()?;
    Some(
        list.split(',')
            .filter(|name| !name.is_empty())
            .map(|name| name.replace('-', "_"))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_a_modules_modinfo() {
        assert_eq!(
            depends(b"ELF..\0license=GPL\0depends=virtio,virtio-ring\0name=x\0"),
            Some(vec!["virtio".to_owned(), "virtio_ring".to_owned()])
        );
        assert_eq!(depends(b"\0depends=\0"), Some(Vec::new()));
        assert_eq!(depends(b"compressed"), None);
    }

    #[test]
    fn dependencies_come_first_and_only_once() {
        let graph = |name: &str| -> Result<Option<Vec<String>>> {
            Ok(match name {
                "blk" | "net" => Some(vec!["virtio".to_owned(), "core".to_owned()]),
                "virtio" => Some(vec!["ring".to_owned()]),
                "core" => None,
                _ => Some(Vec::new()),
            })
        };
        assert_eq!(
            order(&["blk", "net"], &graph).unwrap(),
            ["ring", "virtio", "blk", "net"]
        );
    }

    #[test]
    fn circular_dependencies_of_modules_do_not_loop() {
        let graph = |name: &str| -> Result<Option<Vec<String>>> {
            Ok(Some(vec![if name == "a" { "b" } else { "a" }.to_owned()]))
        };
        assert_eq!(order(&["a"], &graph).unwrap(), ["b", "a"]);
    }
}
