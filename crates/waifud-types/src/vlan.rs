//! Numbers of VLANs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of a VLAN on a bridge, 1 to 4094 (IEEE 802.1Q-2022, table 9-2: 0 is no VLAN, 4095 is reserved).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

/// The number is not that of a VLAN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a VLAN has a number from {} to {}", VlanId::LEAST, VlanId::MOST)]
pub struct VlanIdError;

impl VlanId {
    /// The lowest number.
    pub const LEAST: u16 = 1;
    /// The highest number.
    pub const MOST: u16 = 4094;

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = VlanIdError;

    fn try_from(number: u16) -> Result<Self, VlanIdError> {
        let valid = (Self::LEAST..=Self::MOST).contains(&number);
        valid.then_some(Self(number)).ok_or(VlanIdError)
    }
}

impl From<VlanId> for u16 {
    fn from(vlan: VlanId) -> Self {
        vlan.0
    }
}

impl FromStr for VlanId {
    type Err = VlanIdError;

    fn from_str(text: &str) -> Result<Self, VlanIdError> {
        // `parse` also accepts a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number: u16 = text.parse().map_err(|_| VlanIdError)?;
        if digits {
            Self::try_from(number)
        } else {
            Err(VlanIdError)
        }
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_of_vlans_are_accepted() {
        for number in [1, 20, 4094] {
            let vlan: VlanId = serde_json::from_value(number.into()).unwrap();
            assert_eq!(serde_json::to_value(vlan).unwrap(), number);
            assert_eq!(vlan.to_string().parse(), Ok(vlan));
            assert_eq!(vlan.get(), number);
        }
        for bad in [0, 4095, 65535] {
            assert!(serde_json::from_value::<VlanId>(bad.into()).is_err());
        }
        for bad in ["", "0", "4095", "+20", "-1", "0x14", "65556", "20 ", "lan"] {
            assert_eq!(bad.parse::<VlanId>(), Err(VlanIdError), "{bad}");
        }
    }
}
