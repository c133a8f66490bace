//! Other programs' firewalls on this host, and the marked rules that let guests through them.
//!
//! Chains on the same hook all have their say: what another one drops, our accept can't bring back. So guests need an
//! accept in the chain that drops, or where its maker wants additions to be (Docker's `DOCKER-USER`, ufw's
//! `ufw-before-…`). From what is seen, the functions here say which rules are missing and which of ours are there in
//! vain; they are pure. Ours are known by their comment alone, whoever wrote down what.

pub(crate) mod nftables;
pub(crate) mod save;

/// Whose packets are to get accepted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct AcceptedInterfaces {
    /// The guests' bridge.
    pub(crate) bridge: String,
    /// The interface to metadatad, where guests on the host's own bridges ask for it. What passes there is decided in our
    /// own tables.
    pub(crate) metadata: Option<String>,
    /// The host's own bridges with guests, where the kernel asks these firewalls about bridged frames too
    /// (`br_netfilter`, which Docker switches on). Only frames that stay on the bridge.
    pub(crate) bridged: Vec<String>,
}

impl AcceptedInterfaces {
    /// Pairs of an interface that packets come in by and one that they leave by; `None` is any.
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

/// The comment of every rule of ours in others' chains.
pub(crate) const MARK: &str = "waifud";
