//! Removes everything that waifud added and lists what was removed.

use super::inner::Inner;
use super::links::{self, Links};
use super::sysctl::switch_back;
use super::{dnsmasq, lan, routes};
use crate::NetworkError;

impl Inner {
    /// Removes our objects in the opposite order of their creation, and the tunnel interface `tunnel`, if it exists.
    /// Returns what was removed, as text.
    pub(super) async fn remove(
        &mut self,
        tunnel: Option<&str>,
    ) -> Result<Vec<String>, NetworkError> {
        self.state = None;
        let record = self.record()?;
        let handle = self.handle()?;
        let mut removed = Vec::new();
        if record.dnsmasq.as_ref().and_then(dnsmasq::process).is_some() {
            removed.push("dnsmasq".to_owned());
        }
        self.dnsmasq.remove(record.dnsmasq.as_ref()).await?;
        removed.extend(self.served.remove().await?);
        switch_back(record.switched.iter())?;
        if !record.switched.is_empty() {
            removed.push(format!("forwarding on {}", record.switched.join(", ")));
        }
        match routes::remove(&handle).await? {
            0 => {}
            count => removed.push(format!("{count} routes and routing rules")),
        }
        let links = Links::read(&handle).await?;
        match lan::remove(&handle, &links, &record.answering).await? {
            0 => {}
            count => removed.push(format!("{count} neighbors")),
        }
        if let Some(bridge) = &record.bridge
            && links.named(&bridge.name).is_some()
        {
            links::delete(&handle, &links, &bridge.name).await?;
            removed.push(format!("bridge {}", bridge.name));
        }
        if let Some(name) = tunnel
            && links.named(name).is_some_and(|link| link.is_tunnel)
        {
            links::delete(&handle, &links, name).await?;
            removed.push(format!("tunnel {name}"));
        }
        removed.extend(self.foreign.remove().await?);
        if self.firewall.is_there().await? {
            removed.push("firewall tables".to_owned());
        }
        self.firewall.remove().await?;
        self.record = None;
        self.record_file.remove()?;
        Ok(removed)
    }

    /// The ports of a bridge, sorted.
    pub(super) async fn ports_of(&mut self, bridge: &str) -> Result<Vec<String>, NetworkError> {
        let links = Links::read(&self.handle()?).await?;
        let bridge = links.named(bridge).filter(|link| link.is_bridge);
        Ok(bridge.map_or_else(Vec::new, |link| links.ports_of(link.index)))
    }
}
