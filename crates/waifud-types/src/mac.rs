//! MAC addresses of guests' nics.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::string_conversions;

/// A unicast MAC address in lower case with colons.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct MacAddr([u8; 6]);

/// The text is not a unicast MAC address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a unicast MAC address, for example 52:54:00:12:34:56")]
pub struct MacAddrError(String);

impl MacAddr {
    /// A MAC address in the range that QEMU and KVM use for guests (52:54:00), from three bytes of entropy.
    pub const fn of_guest(tail: [u8; 3]) -> Self {
        Self([0x52, 0x54, 0x00, tail[0], tail[1], tail[2]])
    }

    /// From its six bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Its six bytes.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || MacAddrError(text.chars().take(40).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            // `from_str_radix` also accepts a sign.
            let digits =
                |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        // Bit 0 of the first byte marks group addresses (IEEE 802-2014, 8.2.2).
        if parts.next().is_some() || bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

string_conversions!(MacAddr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_unchanged_by_formatting_and_parsing() {
        let mac = MacAddr::of_guest([1, 0xab, 3]);
        assert_eq!(mac.to_string(), "52:54:00:01:ab:03");
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn group_and_malformed_addresses_are_refused() {
        for bad in [
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "52:54:00:1:2:3",
            "52:54:00:01:02",
            "",
            "zz:54:00:01:02:03",
            "52:54:00:+1:02:03",
            "00:00:00:00:00:00",
            "52:54:00:01:02:03:04",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
