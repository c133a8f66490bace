//! Fetches packages with mmdebstrap, using the machine's mirrors and apt settings.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::run::Tool;
use crate::sources;

/// Settings of the host that determine how apt reaches a mirror and verifies its files. mmdebstrap gives apt its own
/// configuration, so they are passed one by one.
const APT_SETTINGS: [&str; 8] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Retries",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Max-FutureTime",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
];

/// The contents of the target directory.
pub struct Bootstrap<'a> {
    /// The Debian release.
    pub suite: &'a str,
    /// mmdebstrap's variant: `minbase` installs packages, `extract` only unpacks them.
    pub variant: &'a str,
    /// Additional packages, which are installed with their dependencies.
    pub packages: &'a [&'a str],
    /// More options of mmdebstrap.
    pub options: &'a [String],
}

impl Bootstrap<'_> {
    /// Fills `target`, which must not exist; `work` is for files that mmdebstrap reads.
    pub fn run(&self, work: &Path, target: &Path) -> Result<()> {
        sources::check_keyring(self.suite)?;
        let list = work.join(sources::FILE);
        fs::write(&list, sources::apt_sources(self.suite)?)
            .with_context(|| format!("cannot write {}", list.display()))?;
        let settings = Tool::new("apt-config", "apt").arg("dump").run()?;
        Tool::new("mmdebstrap", "mmdebstrap")
            .args(["--quiet", "--mode=root", "--format=directory"])
            // The cache may be in a home directory that apt's user may not enter.
            .arg("--aptopt=APT::Sandbox::User \"root\"")
            .arg("--aptopt=APT::Install-Recommends \"false\"")
            .args(apt_settings(&settings).map(|setting| format!("--aptopt={setting}")))
            .arg(format!("--variant={}", self.variant))
            .arg(format!("--include={}", self.packages.join(",")))
            .args(self.options)
            .arg(self.suite)
            .arg(target)
            .arg(&list)
            .limit(Duration::from_mins(30))
            .run()?;
        Ok(())
    }
}

/// The settings to pass, from the output of `apt-config dump` (one `Name "value";` per line).
fn apt_settings(dump: &str) -> impl Iterator<Item = &str> {
    dump.lines().filter(|line| {
        !line.ends_with("\"\";") && APT_SETTINGS.iter().any(|setting| line.starts_with(setting))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_proxies_and_date_checks_are_passed_on() {
        let dump = r#"APT "";
APT::Architecture "amd64";
Acquire "";
Acquire::cdrom::mount "/media/cdrom/";
Acquire::http "";
Acquire::http::Proxy "http://127.0.0.1:3142";
Acquire::https::Proxy "";
Acquire::Check-Valid-Until "false";
Acquire::GzipIndexes "true";
DPkg::Post-Invoke:: "rm -f something";
"#;
        let kept: Vec<&str> = apt_settings(dump).collect();
        assert_eq!(
            kept,
            [
                "Acquire::http::Proxy \"http://127.0.0.1:3142\";",
                "Acquire::Check-Valid-Until \"false\";"
            ]
        );
    }
}
