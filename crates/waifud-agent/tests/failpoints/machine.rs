//! The hypervisor of a node, which survives when daemons are killed: a fake here, libvirt in `libvirt`.

use std::fmt::Write;
use std::sync::Arc;

use async_trait::async_trait;
use waifud_agent::Settings;
use waifud_hypervisor::Hypervisor;
use waifud_hypervisor::fake::FakeHypervisor;

#[async_trait]
pub trait Machine: Send + Sync {
    /// A new connection, as an agent opens one at its start.
    fn connect(&self) -> Arc<dyn Hypervisor>;
    /// Adapts the settings of an agent on this machine.
    fn adapt(&self, settings: &mut Settings);
    /// The domains, one fact per line.
    async fn tell(&self, text: &mut String);
    /// Removes every domain.
    async fn clear(&self);
}

pub struct Fake(FakeHypervisor);

impl Fake {
    pub fn new() -> Self {
        let hypervisor = FakeHypervisor::new();
        hypervisor.set_default_agent(Some(crate::verbs::cloud_init_done()));
        Self(hypervisor)
    }
}

#[async_trait]
impl Machine for Fake {
    fn connect(&self) -> Arc<dyn Hypervisor> {
        Arc::new(self.0.clone())
    }

    fn adapt(&self, _: &mut Settings) {}

    async fn tell(&self, text: &mut String) {
        writeln!(text, "started {} times", self.0.starts()).unwrap();
        for domain in self.0.list().await.unwrap() {
            let spec = self.0.spec(domain.id).unwrap();
            let disk = self.0.disk_size(domain.id, "root");
            writeln!(
                text,
                "domain {} {:?} {:?} {} CPUs {} grown {disk:?}",
                domain.name, domain.epoch, domain.state, spec.cpus, spec.memory
            )
            .unwrap();
        }
    }

    async fn clear(&self) {}
}
