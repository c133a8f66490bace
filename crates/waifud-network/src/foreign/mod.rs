//! Firewalls of other programs on this host, and our marked rules in them.
//!
//! All chains on a hook are evaluated: an accept in our table does not overrule a drop in another one. So guests need an
//! accept in the chain that drops, or in the chain that its program provides for additions (Docker's `DOCKER-USER`, ufw's
//! `ufw-before-…`). The functions here are pure: they compare listed rules with the wanted ones. Our rules are recognized
//! by their comment alone.

pub(crate) mod nftables;
pub(crate) mod save;

/// The interfaces whose packets other firewalls must accept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct AcceptedInterfaces {
    /// The guests' bridge.
    pub(crate) bridge: String,
    /// The interface to metadatad, if guests on bridges of the host use it. Our own tables restrict its traffic.
    pub(crate) metadata: Option<String>,
    /// Bridges of the host with guests, if bridged frames pass the IP chains as well (`br_netfilter`, which Docker
    /// enables). Only frames that stay on the bridge are accepted.
    pub(crate) bridged: Vec<String>,
}

impl AcceptedInterfaces {
    /// Pairs of incoming and outgoing interface; `None` is any interface.
    pub(crate) fn forwarded(&self) -> Vec<(Option<&str>, Option<&str>)> {
        let any = [Some(self.bridge.as_str()), self.metadata.as_deref()];
        let any = any.into_iter().flatten();
        let mut pairs: Vec<_> = any
            .flat_map(|name| [(Some(name), None), (None, Some(name))])
            .collect();
        let bridged = self.bridged.iter().map(String::as_str);
        pairs.extend(bridged.map(|name| (Some(name), Some(name))));
        pairs
    }
}

/// The guests' bridge alone.
impl From<&str> for AcceptedInterfaces {
    fn from(bridge: &str) -> Self {
        Self {
            bridge: bridge.to_owned(),
            ..Self::default()
        }
    }
}

/// The comment of each of our rules in other firewalls.
pub(crate) const MARK: &str = "waifud";
