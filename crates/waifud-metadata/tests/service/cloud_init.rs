//! cloud-init's own client, of both Debian releases, in a guest's namespace, through the real tunnel.
//!
//! The client comes from Debian's packages through the machine's apt sources, and is kept in the cache directory. Each
//! of its requests is compared with the expected ones, because repeated and failed requests delay guests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};
use waifud_api::{
    agent::BundleRef,
    metadatad::{Assignment, Observed},
};
use waifud_cloudinit::{
    NicAddress, NicDoc, SEAL_ENTROPY, Source, UserDataError, VendorOptions, instance_id, render,
    seal, validate_user_data,
};
use waifud_images::cloud_init_package;
use waifud_kit::testing::skip;
use waifud_metadata::MetadataService;
use waifud_types::{InstanceId, Secret};

use crate::{
    fixture::Guest,
    kit::{World, guest_address},
    tunnel::{furnish, start},
};

/// Debian's Python, which can import Debian's modules.
const PYTHON: &str = "/usr/bin/python3";
const MAC: &str = "52:54:00:12:34:56";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKmyhTZV4GUq9h7+A5C+gyHjT/lSd7pD0QFiNCU6rC5r me@desk";
const USER_DATA: &str = "#cloud-config\npackages: [htop]\n# ünïcode\n";

#[test]
fn cloud_init_22_4_of_bookworm_reads_all_documents_without_a_retry() {
    check("bookworm", "22.4.");
}

#[test]
fn cloud_init_25_1_of_trixie_reads_all_documents_without_a_retry() {
    check("trixie", "25.1.");
}

/// Users copy cloud-init's own examples.
#[test]
fn every_example_of_user_data_in_cloud_init_is_accepted() {
    let Some(unpacked) = unpacked_or_skip("trixie", "25.1.") else {
        return;
    };
    let mut taken = 0;
    for entry in fs::read_dir(unpacked.join("usr/share/doc/cloud-init/examples")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Files of other kinds lie there, too.
        let user_data = [
            "boothook",
            "cloud-config",
            "include",
            "part-handler",
            "user-script",
        ];
        if !user_data.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let verdict = validate_user_data(&text);
        // Parts of these are placeholders, which cloud-init drops: "this is also payload".
        if name.starts_with("cloud-config-archive") {
            let refused = matches!(verdict, Err(UserDataError::Part { number: 2, .. }));
            assert!(refused, "{verdict:?}");
            continue;
        }
        assert!(verdict.is_ok(), "{name}: {verdict:?}");
        taken += 1;
    }
    assert!(taken > 20, "{taken}");
}

fn check(suite: &str, version: &str) {
    let Some(world) = World::new(1) else { return };
    let Some(unpacked) = unpacked_or_skip(suite, version) else {
        return;
    };
    let cloud_init = unpacked.join("usr/lib/python3/dist-packages");
    let root = tempfile::tempdir().unwrap();
    let (service, _stop) = start(&world, root.path());
    let _node = world.start_node();
    let guest = guest_of(InstanceId::generate(), Some(USER_DATA));
    furnish(&world, &service, std::slice::from_ref(&guest));
    with_the_service(&world);

    let seen = run(&world, &cloud_init);
    let iid = instance_id(guest.id, 1);
    assert_eq!(seen["warnings"], json!([]));
    assert_eq!(seen["metadata_address"], "http://169.254.169.254");
    assert_eq!(seen["version"], 2);
    assert_eq!(seen["instance_id"], json!(iid));
    assert_eq!(seen["hostname"], "web");
    assert_eq!(seen["fqdn"], "web.waifu.internal");
    assert_eq!(seen["availability_zone"], "alder");
    assert_eq!(seen["keys"], json!([KEY]));
    assert_eq!(seen["user_data"], USER_DATA);
    let phone_home = &seen["vendor_data"]["phone_home"];
    assert_eq!(
        phone_home["url"],
        "http://169.254.169.254:8169/waifud/phone-home"
    );
    assert_eq!(seen["network"], network());
    assert_eq!(seen["ec2"]["instance-id"], json!(iid));
    assert_eq!(seen["ec2"]["public-keys"], json!({ "key-0": KEY }));
    assert_eq!(
        seen["ec2"]["placement"],
        json!({ "availability-zone": "alder" })
    );
    assert_eq!(seen["ec2_identity"]["document"]["instanceId"], json!(iid));
    assert_eq!(seen["ec2_user_data"], USER_DATA);
    assert_eq!(seen["phone_home_failed"], json!([]));

    let (asked, reports) = observed(&world, &service);
    assert_eq!(asked, REQUESTS, "\n{}", asked.join("\n"));
    assert_eq!(reports, [(Some(iid), Some("web".to_owned()))]);

    assert_eq!(seen["reports_failed"], json!([]));
    let expected = [
        "modules-final begins",
        "modules-final/config-runcmd begins",
        "modules-final/config-runcmd Success",
        "modules-final/config-scripts-user begins",
        "modules-final/config-scripts-user Fail",
        "modules-final Fail",
    ];
    assert_eq!(reported(&world, &service), expected);

    // Without user-data, the requests are the same and none is repeated: 404 is an answer, not a failure to retry.
    furnish(&world, &service, &[guest_of(guest.id, None)]);
    let seen = run(&world, &cloud_init);
    assert_eq!(
        (&seen["user_data"], &seen["ec2_user_data"]),
        (&json!(""), &json!(""))
    );
    assert_eq!(seen["warnings"], json!([]));
    let (asked, _) = observed(&world, &service);
    let wanted: Vec<String> = REQUESTS
        .iter()
        .map(|line| match line.split_once(' ') {
            Some((_, path)) if path.ends_with("data") && path.contains("user") => {
                format!("404 {path}")
            }
            _ => (*line).to_owned(),
        })
        .collect();
    assert_eq!(asked[REQUESTS.len()..], wanted);
}

/// The guests' namespace has a route to the service and none to a name server, so lookups fail at once.
pub(crate) fn with_the_service(world: &World) {
    world.guests.ip("route del default");
    world
        .guests
        .ip("route add 169.254.169.254/32 via 10.77.1.1");
    // As the node's rules do: the port for reports leads to the service.
    let rules = "add table ip reports\n\
        add chain ip reports to { type nat hook prerouting priority -100; }\n\
        add rule ip reports to ip daddr 169.254.169.254 tcp dport 8169 dnat to :80\n";
    let mut nft = Command::new("nft");
    nft.arg(rules).stdin(Stdio::null()).kill_on_drop(true);
    let done = world
        .node
        .run(move || async move { nft.output().await.unwrap() });
    let output_text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{output_text}");
}

type Reports = Vec<(Option<String>, Option<String>)>;

/// The observations of the service: requests with their status, and reports.
pub(crate) fn observed(world: &World, service: &Arc<MetadataService>) -> (Vec<String>, Reports) {
    let service = Arc::clone(service);
    let observed = world
        .node
        .run(move || async move { service.observations(0, Duration::ZERO).await });
    let (mut asked, mut reports) = (Vec::new(), Vec::new());
    for item in observed.items {
        match item.what {
            Observed::Request { path, status } => asked.push(format!("{status} {path}")),
            Observed::PhoneHome {
                instance_id,
                hostname,
                ..
            } => reports.push((instance_id, hostname)),
            Observed::CloudInit(_) => {}
        }
    }
    (asked, reports)
}

/// The events of cloud-init's reporter, as `name result`.
fn reported(world: &World, service: &Arc<MetadataService>) -> Vec<String> {
    let service = Arc::clone(service);
    let observed = world
        .node
        .run(move || async move { service.observations(0, Duration::ZERO).await });
    let events = observed
        .items
        .into_iter()
        .filter_map(|item| match item.what {
            Observed::CloudInit(event) => Some(match event.result {
                Some(result) => format!("{} {result:?}", event.name),
                None => format!("{} begins", event.name),
            }),
            _ => None,
        });
    events.collect()
}

/// Every request of a boot, in order. None is repeated (the list of versions is read once to find the service and once
/// to select a version), and none fails. The last three are those of EC2, which the OpenStack datasource does not send.
const REQUESTS: [&str; 22] = [
    "200 /openstack",
    "200 /openstack",
    "200 /openstack/2018-08-27/meta_data.json",
    "200 /openstack/2018-08-27/user_data",
    "200 /openstack/2018-08-27/vendor_data.json",
    "200 /openstack/2018-08-27/vendor_data2.json",
    "200 /openstack/2018-08-27/network_data.json",
    "200 /latest/meta-data/",
    "200 /latest/meta-data/placement/",
    "200 /latest/meta-data/placement/availability-zone",
    "200 /latest/meta-data/public-keys/",
    "200 /latest/meta-data/public-keys/0/openssh-key",
    "200 /latest/meta-data/ami-id",
    "200 /latest/meta-data/hostname",
    "200 /latest/meta-data/instance-id",
    "200 /latest/meta-data/instance-type",
    "200 /latest/meta-data/local-hostname",
    "200 /latest/meta-data/local-ipv4",
    "200 /latest/meta-data/mac",
    "200 /latest/dynamic/instance-identity",
    "200 /latest/dynamic/instance-identity/document",
    "200 /latest/user-data",
];

/// The expected output of `convert_net_json` for one nic with DHCP.
fn network() -> Value {
    json!({
        "version": 1,
        "config": [
            {
                "type": "physical",
                "name": "eth0",
                "mac_address": MAC,
                "mtu": 1420,
                "subnets": [{ "type": "dhcp4" }],
            },
            { "type": "nameserver", "address": "10.77.1.1" },
        ],
    })
}

pub(crate) fn guest_of(id: InstanceId, user_data: Option<&str>) -> Guest {
    let address = guest_address(0);
    let documents = render(&Source {
        instance: id,
        instance_id: instance_id(id, 1),
        hostname: "web".parse().unwrap(),
        domain: Some("waifu.internal".to_owned()),
        availability_zone: "alder".to_owned(),
        ssh_keys: vec![KEY.to_owned()],
        user_data: user_data.map(|text| Secret::new(text.to_owned())),
        vendor_data: VendorOptions::default(),
        datasource: waifud_types::template::Datasource::Openstack,
        nics: vec![NicDoc {
            name: "eth0".parse().unwrap(),
            mac: MAC.parse().unwrap(),
            address: Some(NicAddress {
                net: ipnet::Ipv4Net::new(address, 24).unwrap(),
                is_static: false,
                gateway: Some("10.77.1.1".parse().unwrap()),
            }),
            mtu: Some(1420),
            dns: vec!["10.77.1.1".parse().unwrap()],
        }],
        default_user: None,
    });
    let sealed = seal(&documents, &[3; SEAL_ENTROPY]).unwrap();
    let assignment = Assignment {
        name: "web".parse().unwrap(),
        address,
        bundle: BundleRef {
            digest: sealed.digest,
            key: sealed.key.clone(),
            size_bytes: sealed.ciphertext.len() as u64,
        },
    };
    Guest {
        id,
        name: "web".to_owned(),
        sealed,
        assignment,
    }
}

/// Runs the client as a guest and reads what it printed.
fn run(world: &World, cloud_init: &Path) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/service/cloud_init.py");
    python(world, script, &[MAC], Some(cloud_init))
}

/// Runs a script as a guest and reads the JSON that it printed.
pub(crate) fn python(
    world: &World,
    script: &str,
    arguments: &[&str],
    modules: Option<&Path>,
) -> Value {
    let mut python = Command::new(PYTHON);
    python
        .arg(script)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(modules) = modules {
        python.env("PYTHONPATH", modules);
    }
    let output = world.guests.run(move || async move {
        timeout(Duration::from_mins(2), python.output())
            .await
            .expect("in time")
            .unwrap()
    });
    let output_text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{output_text}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output_text}"))
}

/// The unpacked package, or an error that names what is missing.
fn unpacked_or_skip(suite: &str, version: &str) -> Option<PathBuf> {
    match cloud_init_package(suite, version) {
        Ok(directory) => Some(directory),
        Err(error) => {
            skip(&format!("{error:#}"));
            None
        }
    }
}

pub(crate) fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let output = std::process::Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("{program} could not be run"))?;
    let output_text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {output_text}");
    Ok(())
}
