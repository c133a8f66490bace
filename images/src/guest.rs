//! The guest images that can be built, and their names.

use std::fmt;
use std::str::FromStr;

/// What to build.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Guest {
    /// Debian 12 with real cloud-init.
    DebianBookworm,
    /// Debian 13 with real cloud-init.
    DebianTrixie,
    /// Debian 12 with the dependencies of waifud's package: a machine to install waifud on.
    DebianNode,
    /// Debian's kernel, busybox, dropbear and the guest agent: boots in seconds under emulation.
    Tiny,
}

impl Guest {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::DebianBookworm,
        Self::DebianTrixie,
        Self::DebianNode,
        Self::Tiny,
    ];

    /// The Debian release that its packages come from.
    pub fn suite(self) -> &'static str {
        match self {
            Self::DebianBookworm | Self::DebianNode | Self::Tiny => "bookworm",
            Self::DebianTrixie => "trixie",
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::DebianBookworm => "debian-12",
            Self::DebianTrixie => "debian-13",
            Self::DebianNode => "debian-12-node",
            Self::Tiny => "tiny",
        })
    }
}

/// An unknown name of a guest image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownGuest(String);

impl fmt::Display for UnknownGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown guest image \"{}\": use debian-12, debian-13, debian-12-node or tiny",
            self.0
        )
    }
}

impl std::error::Error for UnknownGuest {}

impl FromStr for Guest {
    type Err = UnknownGuest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "debian-12" | "bookworm" => Ok(Self::DebianBookworm),
            "debian-13" | "trixie" => Ok(Self::DebianTrixie),
            "debian-12-node" => Ok(Self::DebianNode),
            "tiny" => Ok(Self::Tiny),
            other => Err(UnknownGuest(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_is_found_by_the_name_it_prints() {
        for guest in Guest::ALL {
            assert_eq!(guest.to_string().parse(), Ok(guest));
        }
    }

    #[test]
    fn release_names_work_and_other_names_are_refused_with_the_known_ones() {
        assert_eq!("bookworm".parse(), Ok(Guest::DebianBookworm));
        assert_eq!("trixie".parse(), Ok(Guest::DebianTrixie));
        let error = "buster".parse::<Guest>().unwrap_err().to_string();
        assert!(
            error.contains("buster") && error.contains("debian-12"),
            "{error}"
        );
    }
}
