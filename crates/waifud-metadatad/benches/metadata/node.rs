//! The role of the node's agent: sends bundles to the program over the control socket, runs the node's end of the
//! tunnel, and reads observations of guests, as `waifud-agentd` does all the time.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    runtime::Builder,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use waifud_api::{
    MetadatadClient,
    agent::BundleRef,
    metadatad::{Assignment, Tunnel},
};
use waifud_cloudinit::{NicAddress, NicDoc, SEAL_ENTROPY, Source, render, seal};
use waifud_types::{InstanceId, Secret};
use waifud_wireguard::{NodeTunnel, NodeTunnelConfig, PrivateKey};

use crate::{GUESTS, kit::guest_address};

const PATIENCE: Duration = Duration::from_secs(30);
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKmyhTZV4GUq9h7+A5C+gyHjT/lSd7pD0QFiNCU6rC5r me@desk";

/// The name of the guest with this number; no other guest's name contains it.
pub fn name(number: u8) -> String {
    format!("web-{number:02}")
}

/// Runs until its input is closed, which also happens if the bench is killed. One task of several in a process with
/// threads, like the agent.
pub fn run(socket: &str) -> Result<()> {
    let client = MetadatadClient::new(PathBuf::from(socket));
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(async {
            let furnished = timeout(PATIENCE, furnish(&client)).await;
            let _tunnel = furnished.context("the node's end did not start in time")??;
            tokio::spawn(follow(client));
            spawn_blocking(|| {
                println!("ready");
                let _ = std::io::stdin().read_line(&mut String::new());
            })
            .await?;
            Ok(())
        })
}

async fn furnish(client: &MetadatadClient) -> Result<NodeTunnel> {
    let key = PrivateKey::generate();
    let tunnel = Tunnel {
        node_public_key: key.public_key().to_string(),
        node_endpoint: ([127, 0, 0, 1], 51822).into(),
        subnet: "10.77.1.0/24".parse()?,
        identities: None,
        moved: Vec::new(),
    };
    let status = client.put_tunnel(&tunnel).await?;
    for number in 0..GUESTS {
        serve(client, number).await?;
    }
    let config = NodeTunnelConfig {
        server_endpoint: status.endpoint,
        ..NodeTunnelConfig::new(key, status.public_key.parse()?)
    };
    Ok(NodeTunnel::start_in_userspace(config).await?)
}

/// Configures the program to serve one guest.
async fn serve(client: &MetadatadClient, number: u8) -> Result<()> {
    let id = InstanceId::generate();
    let (name, address) = (name(number), guest_address(number));
    let user_data = format!(
        "#cloud-config\npackages: [htop]\nwrite_files:\n- path: /etc/motd\n  content: |\n    {name}\n{}",
        "    A line of about the usual length in such files.\n".repeat(20)
    );
    let documents = render(&Source {
        domain: Some("waifu.internal".to_owned()),
        availability_zone: "alder".to_owned(),
        ssh_keys: vec![KEY.to_owned()],
        user_data: Some(Secret::new(user_data)),
        nics: vec![NicDoc {
            name: "eth0".parse()?,
            mac: format!("52:54:00:12:34:{number:02x}").parse()?,
            address: Some(NicAddress {
                net: ipnet::Ipv4Net::new(address, 24)?,
                is_static: false,
                gateway: Some([10, 77, 1, 1].into()),
            }),
            mtu: Some(1420),
            dns: vec![[10, 77, 1, 1].into()],
        }],
        ..Source::new(id, name.parse()?)
    });
    let mut entropy = [0; SEAL_ENTROPY];
    for (to, from) in entropy.iter_mut().zip(id.as_uuid().as_bytes()) {
        *to = *from;
    }
    let sealed = seal(&documents, &entropy)?;
    let assignment = Assignment {
        name: name.parse()?,
        address,
        bundle: BundleRef {
            digest: sealed.digest,
            key: sealed.key,
            size_bytes: sealed.ciphertext.len() as u64,
        },
    };
    client.put_bundle(sealed.digest, sealed.ciphertext).await?;
    client.put_instance(id, &assignment).await?;
    Ok(())
}

/// Reads observations of guests, forever.
async fn follow(client: MetadatadClient) {
    let mut after = 0;
    loop {
        match client.observations(after, PATIENCE).await {
            Ok(seen) => after = seen.last,
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}
