//! Whether user-data disables cloud-init's reports, and which of its keys a module applies.
//!
//! cloud-init merges user-data over vendor-data: dictionaries by key; other values are replaced. So a further reporter does
//! not affect ours, while `reporting: null` or `vendor_data: {enabled: false}` disable it.

use waifud_types::spec::Unreported;

use crate::user_data::{UserDataError, UserDataKind, parse_user_data, validate_user_data};
use crate::vendor::REPORTER;
use crate::yaml::{Document, Node};

/// The key of the message.
const FINAL_MESSAGE: &str = "final_message";

/// A top-level key of a `#cloud-config`, or a complete script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserDataKey {
    /// The key, for example `runcmd`.
    pub key: String,
    /// Its line, from 1.
    pub line: usize,
}

/// What waifud cannot learn from a guest with this user-data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReportSettings {
    /// The part of the user-data that disables reports to waifud; `None` if none is found.
    pub unreported: Option<Unreported>,
    /// Whether the user-data, or a part of it, may replace the final message that cloud-init writes to the console.
    pub replaces_final_message: bool,
}

/// Checks user-data and finds what it changes about cloud-init's reports. Parses a `#cloud-config` once: the time grows
/// with its size.
///
/// # Errors
/// As [`validate_user_data`].
pub fn report_settings(user_data: &str) -> Result<ReportSettings, UserDataError> {
    let some_part_has = |key| some_part_has(user_data, key);
    Ok(match parse_user_data(user_data)? {
        (_, Some(cloud_config)) => of_cloud_config(&cloud_config),
        // cloud-init merges the parts, so each part is searched separately.
        (UserDataKind::Mime | UserDataKind::CloudConfigArchive | UserDataKind::Jinja, None) => {
            ReportSettings {
                unreported: (some_part_has("reporting") || some_part_has("vendor_data"))
                    .then_some(Unreported::PartMayOverride),
                replaces_final_message: some_part_has(FINAL_MESSAGE),
            }
        }
        _ => ReportSettings::default(),
    })
}

fn of_cloud_config(document: &Document) -> ReportSettings {
    let Some(root) = document.root() else {
        return ReportSettings::default();
    };
    ReportSettings {
        unreported: turned_off(document, root),
        replaces_final_message: document.get(root, FINAL_MESSAGE).is_some(),
    }
}

/// Whether a line of any part begins with this key.
fn some_part_has(user_data: &str, key: &str) -> bool {
    let mut lines = user_data.lines().map(str::trim_start);
    lines.any(|line| is_key(line, key))
}

fn turned_off(document: &Document, root: &Node) -> Option<Unreported> {
    let enabled = document
        .get(root, "vendor_data")
        .and_then(|vendor_data| document.get(vendor_data, "enabled"));
    if enabled.is_some_and(is_false) {
        return Some(Unreported::VendorDataDisabled);
    }
    let reporting = document.get(root, "reporting")?;
    let replaced = !reporting.is("map") || document.get(reporting, REPORTER).is_some();
    replaced.then_some(Unreported::ReporterOverridden)
}

/// Whether cloud-init interprets a value as false (`cloudinit.util.is_false`).
fn is_false(value: &Node) -> bool {
    let text = value.text().unwrap_or_default().trim().to_ascii_lowercase();
    ["off", "0", "no", "false"].contains(&text.as_str())
}

/// The key of the user-data that a module applies, if the user-data has such a key at the top level. `module` is for
/// example `scripts-user` or `package_update_upgrade_install`.
pub fn key_of_module(user_data: &str, module: &str) -> Option<UserDataKey> {
    let module = module.replace('_', "-");
    match validate_user_data(user_data).ok()? {
        UserDataKind::Script if module == "scripts-user" => Some(UserDataKey {
            key: "the script".to_owned(),
            line: 1,
        }),
        UserDataKind::CloudConfig => {
            let present = |key: &&str| line_of(user_data, key).is_some();
            let mut keys = keys_of(&module).iter().copied().filter(present);
            let key = keys.next()?;
            let line = line_of(user_data, key)?;
            Some(UserDataKey {
                key: key.to_owned(),
                line,
            })
        }
        _ => None,
    }
}

/// The keys of modules that read one key with the module's name.
const KEYS_NAMED_AS_THEIR_MODULES: [&str; 15] = [
    "ansible",
    "bootcmd",
    "chef",
    "growpart",
    "keyboard",
    "locale",
    "lxd",
    "ntp",
    "phone_home",
    "puppet",
    "rsyslog",
    "salt_minion",
    "snap",
    "timezone",
    "wireguard",
];

/// The keys that a module reads, the most specific first.
fn keys_of(module: &str) -> &'static [&'static str] {
    match module {
        // cloud-init writes `runcmd` to a script that this module runs.
        "scripts-user" | "runcmd" => &["runcmd"],
        "package-update-upgrade-install" => &[
            "packages",
            "package_upgrade",
            "package_update",
            "apt_upgrade",
            "apt_update",
        ],
        "write-files" | "write-files-deferred" => &["write_files"],
        "users-groups" => &["users", "user", "groups"],
        "set-passwords" => &["chpasswd", "password", "ssh_pwauth"],
        "ssh" => &["ssh_keys", "ssh_authorized_keys", "ssh_genkeytypes"],
        "ssh-import-id" => &["ssh_import_id"],
        "apt-configure" => &["apt", "apt_sources"],
        "mounts" => &["mounts", "swap"],
        "disk-setup" => &["disk_setup", "fs_setup"],
        "resizefs" => &["resize_rootfs"],
        "ca-certs" | "ca-certificates" => &["ca_certs", "ca-certs"],
        "power-state-change" => &["power_state"],
        "set-hostname" | "update-hostname" => &["hostname", "fqdn"],
        "update-etc-hosts" => &["manage_etc_hosts"],
        other => {
            let same = |key: &&[&str]| key.concat().replace('_', "-") == other;
            KEYS_NAMED_AS_THEIR_MODULES
                .chunks(1)
                .find(same)
                .unwrap_or_default()
        }
    }
}

/// The line of a top-level key, from 1.
fn line_of(user_data: &str, key: &str) -> Option<usize> {
    let at = user_data.lines().position(|line| is_key(line, key))?;
    Some(at + 1)
}

/// Whether a line begins with this key, bare or quoted.
fn is_key(line: &str, key: &str) -> bool {
    let bare = line
        .strip_prefix(key)
        .or_else(|| {
            let quoted = line.strip_prefix(['"', '\''])?;
            quoted.strip_prefix(key)?.strip_prefix(['"', '\''])
        })
        .map(str::trim_start);
    bare.is_some_and(|rest| rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use Unreported::{PartMayOverride, ReporterOverridden, VendorDataDisabled};

    use super::*;

    fn settings(user_data: &str) -> ReportSettings {
        report_settings(user_data).unwrap()
    }

    #[test]
    fn user_data_that_the_guest_would_not_read_is_refused() {
        assert!(report_settings("#cloud-config\n\tpackages: []\n").is_err());
    }

    #[test]
    fn only_settings_that_disable_the_reporter_are_detected() {
        for reported in [
            "",
            "#!/bin/sh\nreporting: off\n",
            "#cloud-config\npackages: [htop]\n",
            "#cloud-config\nreporting:\n  mine: {type: log}\n",
            "#cloud-config\nvendor_data: {enabled: true}\n",
            "#cloud-config\nphone_home: {url: http://x}\n",
            "#cloud-config\nwrite_files:\n- content: |\n    reporting:\n",
        ] {
            assert_eq!(settings(reported).unreported, None, "{reported}");
        }
        for (user_data, what) in [
            ("#cloud-config\nreporting: null\n", ReporterOverridden),
            (
                "#cloud-config\nreporting:\n  waifud: {type: log}\n",
                ReporterOverridden,
            ),
            ("#cloud-config\nreporting:\n  waifud:\n", ReporterOverridden),
            (
                "#cloud-config\nvendor_data: {enabled: false}\n",
                VendorDataDisabled,
            ),
            (
                "#cloud-config\nvendor_data:\n  enabled: no\n",
                VendorDataDisabled,
            ),
            (
                "## template: jinja\n#cloud-config\nreporting: {}\n",
                PartMayOverride,
            ),
        ] {
            assert_eq!(settings(user_data).unreported, Some(what), "{user_data}");
        }
    }

    #[test]
    fn a_replaced_final_message_is_detected() {
        for replaced in [
            "#cloud-config\nfinal_message: ready\n",
            "#cloud-config\n\"final_message\": |\n  ready\n",
            "## template: jinja\n#cloud-config\nfinal_message: ready\n",
        ] {
            assert!(settings(replaced).replaces_final_message, "{replaced}");
        }
        for kept in [
            "",
            "#!/bin/sh\nfinal_message: ready\n",
            "#cloud-config\npackages: [htop]\n",
            "#cloud-config\nwrite_files:\n- content: |\n    final_message: ready\n",
        ] {
            assert!(!settings(kept).replaces_final_message, "{kept}");
        }
    }

    #[test]
    fn a_module_is_tied_to_the_line_of_its_key() {
        let text = "#cloud-config\npackages: [htop]\n\"runcmd\":\n- false\n";
        let of = |module: &str| key_of_module(text, module).map(|it| (it.key, it.line));
        assert_eq!(of("scripts-user"), Some(("runcmd".to_owned(), 3)));
        let packages = Some(("packages".to_owned(), 2));
        assert_eq!(of("package-update-upgrade-install"), packages);
        assert_eq!(of("package_update_upgrade_install"), packages);
        assert_eq!(of("bootcmd"), None, "the user-data has no such key");
        assert_eq!(of("grub-dpkg"), None);
        let script = key_of_module("#!/bin/sh\nfalse\n", "scripts-user").unwrap();
        assert_eq!((script.key.as_str(), script.line), ("the script", 1));
    }
}
