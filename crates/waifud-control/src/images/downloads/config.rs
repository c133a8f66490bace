//! The settings of downloads.

use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use waifud_types::ByteSize;

use super::reach::{self, Reach};
use crate::env::Interfaces;

/// The settings of downloads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DownloadConfig {
    /// Whether images may be downloaded from this machine.
    pub loopback: bool,
    /// A mirror for the images of the catalog, used as `MIRROR/HOST/PATH`. Empty for none.
    pub mirror: String,
    /// Whether to use `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` of the environment.
    pub proxies: bool,
    /// The pause after the first failed attempt; it doubles with each failure, up to a minute.
    pub pause: Duration,
    /// A server that sends nothing for this long is treated as disconnected.
    pub silence: Duration,
    /// The minimum transfer rate.
    pub pace: Pace,
    /// The maximum number of concurrent downloads.
    pub at_once: u64,
    /// Networks for which errors contain no details.
    pub private: Vec<IpNet>,
}

/// A minimum transfer rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// The bytes that must arrive
    pub bytes: ByteSize,
    /// in each window of this length.
    pub window: Duration,
}

impl Default for DownloadConfig {
    fn default() -> Self {
        Self {
            loopback: false,
            mirror: String::new(),
            proxies: true,
            pause: Duration::from_secs(1),
            silence: Duration::from_mins(1),
            pace: Pace {
                bytes: ByteSize::mib(1),
                window: Duration::from_mins(1),
            },
            at_once: 32,
            private: reach::private_networks(),
        }
    }
}

/// The settings of downloads together with the facts about waifud's machine that decide about addresses.
#[derive(Clone, Debug)]
pub(crate) struct DownloadSettings {
    pub(super) downloads: DownloadConfig,
    pub(super) image_max: ByteSize,
    guest_range: Ipv4Net,
    interfaces: Arc<dyn Interfaces>,
}

impl DownloadSettings {
    pub(crate) fn new(
        downloads: DownloadConfig,
        image_max: ByteSize,
        guest_range: Ipv4Net,
        interfaces: Arc<dyn Interfaces>,
    ) -> Self {
        Self {
            downloads,
            image_max,
            guest_range,
            interfaces,
        }
    }

    /// Which addresses are allowed, with the machine's own addresses as they are now.
    pub(super) fn reach(&self) -> Reach {
        Reach {
            loopback: self.downloads.loopback,
            own: self.interfaces.addresses(),
            guests: Some(self.guest_range),
            private: self.downloads.private.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_in_the_guide() {
        let defaults = DownloadConfig::default();
        assert_eq!(defaults.at_once, 32);
        assert_eq!(defaults.pace.bytes, ByteSize::mib(1));
        assert_eq!(defaults.pace.window, Duration::from_mins(1));
        assert!(defaults.proxies && !defaults.loopback);
        let guide = include_str!("../../../../../docs/guides/images.md");
        for sentence in [
            "At most 32 downloads run at the same time.",
            "aborts an attempt that transfers less than 1 MiB in a minute",
        ] {
            assert!(guide.contains(sentence), "{sentence}");
        }
    }
}
