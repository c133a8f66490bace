//! The node's `/etc/passwd` and `/etc/group` with the accounts that packages would create.
//!
//! The accounts exist only inside. Their numbers are from the range that Debian Policy (9.2.2) reserves for allocation
//! on request, so that files of the lab do not belong to an account of the host.

use std::fmt::Write as _;

/// The user of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Identity {
    pub(crate) const ROOT: Self = Self {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    };
}

pub(crate) const WAIFUD: u32 = 64_910;
pub(crate) const METADATA: u32 = 64_911;
pub(crate) const IMAGE: u32 = 64_912;
pub(crate) const DNSMASQ: u32 = 64_913;
const ADMIN: u32 = 64_914;
pub(crate) const KVM: u32 = 64_915;
/// The number in Debian's libvirt packages.
pub(crate) const LIBVIRT_QEMU: u32 = 64_055;

/// The account of the host that is copied: the caller's group under sudo.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Caller {
    pub gid: Option<u32>,
}

impl Caller {
    pub(crate) fn look() -> Self {
        let caller = std::env::var("SUDO_GID").ok();
        let caller = caller.and_then(|gid| gid.parse().ok());
        Self {
            gid: caller.filter(|&gid| gid != 0),
        }
    }

    /// `waifud-admin`: the caller's group, if any, so that the user who called sudo can use the socket.
    pub(crate) fn admin_gid(self) -> u32 {
        self.gid.unwrap_or(ADMIN)
    }
}

/// `/etc/passwd`.
pub(crate) fn passwd() -> String {
    let mut text = String::from("root:x:0:0:root:/root:/bin/bash\n");
    for (name, uid, gid, home) in [
        ("waifud", WAIFUD, WAIFUD, "/var/lib/waifud"),
        (
            "waifud-metadata",
            METADATA,
            METADATA,
            "/var/lib/waifud-metadata",
        ),
        ("waifud-image", IMAGE, IMAGE, "/nonexistent"),
        ("dnsmasq", DNSMASQ, 65_534, "/var/lib/misc"),
        ("libvirt-qemu", LIBVIRT_QEMU, KVM, "/var/lib/libvirt"),
        ("nobody", 65_534, 65_534, "/nonexistent"),
    ] {
        let _ = writeln!(text, "{name}:x:{uid}:{gid}:{name}:{home}:/usr/sbin/nologin");
    }
    text
}

/// `/etc/group`.
pub(crate) fn group(caller: Caller) -> String {
    let mut text = String::new();
    for (name, gid, members) in [
        ("root", 0, ""),
        ("tty", 5, ""),
        ("disk", 6, ""),
        ("kvm", KVM, ""),
        ("waifud", WAIFUD, ""),
        ("waifud-admin", caller.admin_gid(), "waifud"),
        ("waifud-metadata", METADATA, ""),
        ("waifud-image", IMAGE, ""),
        ("libvirt-qemu", LIBVIRT_QEMU, "libvirt-qemu"),
        ("nogroup", 65_534, ""),
    ] {
        let _ = writeln!(text, "{name}:x:{gid}:{members}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_has_debians_number_and_admins_have_the_callers_group() {
        let caller = Caller { gid: Some(1000) };
        assert!(passwd().contains("\nlibvirt-qemu:x:64055:64915:"));
        assert!(group(caller).contains("\nkvm:x:64915:\n"));
        assert!(group(caller).contains("\nwaifud-admin:x:1000:waifud\n"));
    }

    #[test]
    fn no_two_users_and_no_two_groups_share_a_number() {
        for text in [passwd(), group(Caller::default())] {
            let mut numbers: Vec<_> = text
                .lines()
                .filter_map(|line| line.split(':').nth(2))
                .collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), count);
        }
    }
}
