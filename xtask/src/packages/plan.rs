//! Chooses the suite of QEMU and libvirt.
//!
//! Debian's QEMU packages are compatible only within one suite: `qemu-utils` from backports breaks `qemu-system-common`
//! from the release. The choice is left to apt, unless a QEMU or libvirt package from backports is installed or apt
//! finds no solution. In these cases all of QEMU and libvirt comes from backports.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};

use super::apt;
use super::quiet::NoServices;
use super::sources::WithBackports;

/// Packages that must come from one suite. Packages that the suite does not have are left out.
const TOGETHER: &[&str] = &[
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "qemu-utils",
    "seabios",
    "ipxe-qemu",
    "libvirt0",
    "libvirt-common",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-common",
    "libvirt-daemon-log",
    "libvirt-daemon-driver-qemu",
    "libvirt-dev",
];

/// Installs `names`.
pub fn install(names: &[&str]) -> Result<()> {
    let plain: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let installed = apt::installed()?;
    let _quiet = NoServices::start(names)?;
    apt::update(None)?;
    let refused = if has_backports(&installed) {
        "QEMU or libvirt from backports is installed".to_owned()
    } else {
        match apt::simulate(&plain, None)? {
            Ok(()) => return apt::install(&plain, None),
            Err(output) => output,
        }
    };
    let codename = codename(&fs::read_to_string("/etc/os-release")?)
        .context("/etc/os-release contains no VERSION_CODENAME")?;
    let suite = format!("{codename}-backports");
    eprintln!("installing QEMU and libvirt from {suite}: {refused}");
    let configured = !apt::in_suite(&["qemu-utils"], &suite, None)?.is_empty();
    let with = if configured {
        None
    } else {
        Some(WithBackports::new(&codename)?)
    };
    let sources = with.as_ref().map(WithBackports::path);
    if sources.is_some() {
        apt::update(sources)?;
    }
    let available = apt::in_suite(TOGETHER, &suite, sources)?;
    let words = from_backports(names, &installed, &available, &suite);
    if let Err(output) = apt::simulate(&words, sources)? {
        bail!("apt-get cannot install {}:\n{output}", words.join(" "));
    }
    apt::install(&words, sources)
}

/// Whether a QEMU or libvirt package from backports is installed.
fn has_backports(installed: &BTreeMap<String, String>) -> bool {
    let ours = |name: &str| {
        TOGETHER.contains(&name) || name.starts_with("qemu-") || name.starts_with("libvirt")
    };
    installed
        .iter()
        .any(|(name, version)| ours(name) && version.contains("~bpo"))
}

/// `names`, plus the packages of [`TOGETHER`] that are installed or needed by one of `names`. Packages that `suite` has
/// are requested from it. (`-t SUITE` would install everything else from backports, too.)
fn from_backports(
    names: &[&str],
    installed: &BTreeMap<String, String>,
    available: &[String],
    suite: &str,
) -> Vec<String> {
    let wants = |start: &str| names.iter().any(|name| name.starts_with(start));
    let mut words: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    for &name in TOGETHER {
        let kin = if name.starts_with("libvirt") {
            wants("libvirt")
        } else {
            wants("qemu-system")
        };
        if !names.contains(&name)
            && (kin || installed.contains_key(name))
            && available.iter().any(|have| have == name)
        {
            words.push(name.to_owned());
        }
    }
    for word in &mut words {
        if available.contains(word) {
            word.push('/');
            word.push_str(suite);
        }
    }
    words
}

/// `VERSION_CODENAME` of os-release(5).
fn codename(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let value = value.trim().trim_matches('"');
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter()
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect()
    }

    #[test]
    fn qemu_tools_from_backports_bring_the_rest_from_there() {
        let machine = installed(&[("qemu-utils", "1:10.0.2+ds-2~bpo12+1"), ("gcc", "12")]);
        assert!(has_backports(&machine));
        let available: Vec<_> = [
            "qemu-system-x86",
            "qemu-system-common",
            "qemu-utils",
            "libvirt0",
        ]
        .map(str::to_owned)
        .into();
        let words = from_backports(
            &["qemu-system-x86", "nftables"],
            &machine,
            &available,
            "bookworm-backports",
        );
        assert_eq!(
            words,
            [
                "qemu-system-x86/bookworm-backports",
                "nftables",
                "qemu-system-common/bookworm-backports",
                "qemu-utils/bookworm-backports"
            ]
        );
    }

    #[test]
    fn backports_of_other_packages_decide_nothing() {
        assert!(!has_backports(&installed(&[
            ("git", "1~bpo12+1"),
            ("qemu-utils", "1:7.2+dfsg-7+deb12u18")
        ])));
        assert!(has_backports(&installed(&[(
            "libvirt0",
            "11.3.0-3~bpo12+1"
        )])));
    }

    #[test]
    fn the_code_name_is_read_with_and_without_quotes() {
        assert_eq!(
            codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(),
            Some("bookworm")
        );
        assert_eq!(
            codename("VERSION_CODENAME=\"trixie\"").as_deref(),
            Some("trixie")
        );
        assert_eq!(codename("VERSION_CODENAME=\n"), None);
    }
}
