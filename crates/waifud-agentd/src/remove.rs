//! `waifud-agentd remove-network`: leaves the host as if there had never been guests. For the package's removal.

use anyhow::{Context, bail};
use waifud_agent::shutdown;
use waifud_hypervisor::Hypervisor;
use waifud_hypervisor::libvirt::LibvirtHypervisor;
use waifud_network::linux::LinuxNetwork;

use crate::config::Config;
use crate::host;

/// Removes the guests' network and prints one line that says what that was. Changes nothing while guests run, or an
/// agent that would make it anew.
pub async fn remove_network(config: &Config) -> anyhow::Result<()> {
    if host::is_locked(&config.state_dir)? {
        bail!(
            "waifud-agentd runs and would make the network anew; stop it first: systemctl stop waifud-agentd"
        );
    }
    let network = LinuxNetwork::new(crate::network(config));
    let attached = network.attached(&config.bridge).await?;
    let libvirt = LibvirtHypervisor::connect(crate::libvirt(config, None))?;
    refuse_while_guests_run(libvirt.as_ref(), &attached).await?;
    let removed = network
        .remove(&config.metadata_interface)
        .await
        .context("the network is not removed to the end; run this again")?;
    println!("{}", line(&removed));
    Ok(())
}

/// A guest that runs has a tap on the bridge. Where libvirt can't be asked, those that are `attached` tell.
async fn refuse_while_guests_run(
    hypervisor: &dyn Hypervisor,
    attached: &[String],
) -> anyhow::Result<()> {
    match shutdown::running(hypervisor).await {
        Ok(running) if running.is_empty() => Ok(()),
        Ok(running) => {
            let names: Vec<_> = running.iter().map(|guest| guest.name.as_str()).collect();
            bail!("guests run: {}; stop them first, with waifuctl stop or waifud-agentd stop-guests", names.join(", "));
        }
        Err(_) if attached.is_empty() => Ok(()),
        Err(error) => Err(error).with_context(|| {
            format!(
                "guests seem to run ({} on the bridge) and libvirt can't be asked which; start it and stop them first",
                attached.join(", ")
            )
        }),
    }
}

fn line(removed: &[String]) -> String {
    if removed.is_empty() {
        "nothing of the guests' network is here".to_owned()
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
    async fn an_agent_that_runs_is_to_be_stopped_first() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        std::fs::create_dir(&config.state_dir).unwrap();
        let _agent = host::lock(&config.state_dir).unwrap();
        let error = remove_network(&config).await.unwrap_err();
        assert!(error.to_string().contains("stop it first"), "{error}");
    }

    #[tokio::test]
    async fn where_libvirt_cannot_be_asked_a_tap_on_the_bridge_is_a_guest_that_runs() {
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
    async fn guests_that_run_are_named() {
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
    fn what_was_removed_is_said_in_one_line() {
        assert_eq!(line(&[]), "nothing of the guests' network is here");
        let removed = ["dnsmasq".to_owned(), "bridge waifu0".to_owned()];
        assert_eq!(line(&removed), "removed: dnsmasq, bridge waifu0");
    }
}
