//! `waifud-agentd remove-network`: removes everything that was set up on the host for guests. Used when the package is
//! removed.

use anyhow::{Context, bail};
use waifud_agent::shutdown;
use waifud_hypervisor::Hypervisor;
use waifud_hypervisor::libvirt::LibvirtHypervisor;
use waifud_network::fabric::Fabric;
use waifud_network::linux::LinuxNetwork;

use crate::assembly;
use crate::config::Config;
use crate::host;

/// Removes the guests' network and prints what was removed in one line. Changes nothing while guests run, or while an agent
/// runs that would recreate it.
pub async fn remove_network(config: &Config) -> anyhow::Result<()> {
    if host::is_locked(&config.state_dir)? {
        bail!(
            "waifud-agentd is running and would recreate the network; stop it first: systemctl stop waifud-agentd"
        );
    }
    let network = LinuxNetwork::new(assembly::network(config));
    let attached = network.attached(&config.bridge).await?;
    let libvirt = LibvirtHypervisor::connect(assembly::libvirt(config, None))?;
    refuse_while_guests_run(libvirt.as_ref(), &attached).await?;
    let mut removed = Vec::new();
    // Without a key, there never was a fabric; the key would be created here.
    if assembly::has_mesh_key(config) {
        removed = assembly::fabric(config)?
            .remove()
            .await
            .context("the connection to other nodes was not removed; run this command again")?;
    }
    removed.extend(
        network
            .remove(&config.metadata_interface)
            .await
            .context("the guests' network was only partly removed; run this command again")?,
    );
    println!("{}", line(&removed));
    Ok(())
}

/// A running guest has a tap on the bridge. If libvirt does not answer, the `attached` taps show whether guests run.
async fn refuse_while_guests_run(
    hypervisor: &dyn Hypervisor,
    attached: &[String],
) -> anyhow::Result<()> {
    match shutdown::running(hypervisor).await {
        Ok(running) if running.is_empty() => Ok(()),
        Ok(running) => {
            let names: Vec<_> = running.iter().map(|guest| guest.name.as_str()).collect();
            bail!("guests are running: {}; stop them first, with waifuctl stop or waifud-agentd stop-guests", names.join(", "));
        }
        Err(_) if attached.is_empty() => Ok(()),
        Err(error) => Err(error).with_context(|| {
            format!(
                "guests seem to be running (taps on the bridge: {}), but libvirt does not answer; start libvirt, then stop the guests",
                attached.join(", ")
            )
        }),
    }
}

fn line(removed: &[String]) -> String {
    if removed.is_empty() {
        "the guests' network does not exist on this machine".to_owned()
    } else {
        format!("removed: {}", removed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use waifud_hypervisor::conformance::diskless_spec;
    use waifud_hypervisor::fake::FakeHypervisor;

    use super::*;

    fn config(dir: &std::path::Path) -> Config {
        Config {
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            ..Config::default()
        }
    }

    #[tokio::test]
    async fn a_running_agent_must_be_stopped_first() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        std::fs::create_dir(&config.state_dir).unwrap();
        let _agent = host::lock(&config.state_dir).unwrap();
        let error = remove_network(&config).await.unwrap_err();
        assert!(error.to_string().contains("stop it first"), "{error}");
    }

    #[tokio::test]
    async fn without_libvirt_a_tap_on_the_bridge_counts_as_a_running_guest() {
        let hypervisor = FakeHypervisor::new();
        refuse_while_guests_run(&hypervisor, &[]).await.unwrap();
        hypervisor.set_reachable(false);
        refuse_while_guests_run(&hypervisor, &[]).await.unwrap();
        let taps = ["wf-00000000".to_owned()];
        let error = refuse_while_guests_run(&hypervisor, &taps)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("wf-00000000"), "{error}");
    }

    #[tokio::test]
    async fn running_guests_are_listed() {
        let hypervisor = FakeHypervisor::new();
        let id = "0192f0c1-2345-7abc-8def-0123456789ab".parse().unwrap();
        let spec = diskless_spec(id, "web-1");
        hypervisor.ensure_defined(&spec).await.unwrap();
        refuse_while_guests_run(&hypervisor, &[]).await.unwrap();
        hypervisor.ensure_started(id).await.unwrap();
        let error = refuse_while_guests_run(&hypervisor, &[]).await.unwrap_err();
        assert!(error.to_string().contains("web-1"), "{error}");
    }

    #[test]
    fn removed_objects_are_printed_in_one_line() {
        assert_eq!(
            line(&[]),
            "the guests' network does not exist on this machine"
        );
        let removed = ["dnsmasq".to_owned(), "bridge waifu0".to_owned()];
        assert_eq!(line(&removed), "removed: dnsmasq, bridge waifu0");
    }
}
