//! The documents of each datasource besides OpenStack's, and the disk.

use proptest::prelude::*;
use waifud_cloudinit::{GuestRequest, Method, Source, path_of, render};
use waifud_types::Secret;
use waifud_types::template::{Datasource, NOCLOUD_SEED};

use crate::common::{ask, documents, get, source};

const NAMES: [&str; 4] = ["meta-data", "network-config", "user-data", "vendor-data"];

/// The directory from which cloud-init fetches according to the DMI serial number.
fn seed() -> &'static str {
    let (_, url) = NOCLOUD_SEED.split_once(";s=").unwrap();
    assert!(url.ends_with('/'), "both versions of cloud-init need it");
    path_of(url)
}

#[test]
fn nocloud_always_has_all_four_documents() {
    let documents = documents();
    let seen: Vec<String> = NAMES
        .iter()
        .map(|name| {
            let (status, body) = get(&documents, &format!("{}{name}", seed()));
            assert_eq!(status, 200, "{name}");
            format!("--- {name}\n{body}")
        })
        .collect();
    insta::assert_snapshot!(seen.join("\n"));
    assert_eq!(get(&documents, seed()).1.lines().collect::<Vec<_>>(), NAMES);

    let nothing = render(&Source {
        user_data: None,
        ..source()
    });
    for name in NAMES {
        let (status, body) = get(&nothing, &format!("{}{name}", seed()));
        assert_eq!(status, 200, "{name}");
        assert!(name != "user-data" || body.is_empty());
    }
    for path in [
        "/nocloud/other",
        "/nocloud/meta-data/",
        "/nocloud/../openstack",
        "/nocloud/%6deta-data",
    ] {
        assert_eq!(get(&documents, path).0, 404, "{path}");
    }
    let put = GuestRequest {
        method: Method::Put,
        ..GuestRequest::get("/nocloud/user-data")
    };
    assert_eq!(ask(&documents, &put).status, 405);
}

#[test]
fn only_ec2_has_the_documents_of_its_network_configuration() {
    let path = "/2021-03-23/meta-data/network/interfaces/macs/52:54:00:12:34:56/";
    assert_eq!(get(&documents(), path).0, 404);
    let ec2 = render(&Source {
        datasource: Datasource::Ec2,
        ..source()
    });
    let listed = get(&ec2, path).1;
    let seen: Vec<String> = listed
        .lines()
        .map(|leaf| format!("{leaf}: {}", get(&ec2, &format!("{path}{leaf}")).1))
        .collect();
    assert_eq!(
        seen,
        [
            "device-number: 0",
            "interface-id: eni-0",
            "local-ipv4s: 10.144.3.7",
            "mac: 52:54:00:12:34:56",
            "subnet-ipv4-cidr-block: 10.144.3.0/24",
        ]
    );
}

#[test]
fn equal_documents_give_an_equal_disk_with_all_of_them() {
    let disk = documents().cidata();
    assert_eq!(disk, documents().cidata());
    assert_eq!(disk.len() % 2048, 0);
    for name in NAMES {
        let text = get(&documents(), &format!("/nocloud/{name}")).1;
        assert!(
            disk.windows(text.len().max(1))
                .any(|window| window == text.as_bytes() || text.is_empty()),
            "{name}"
        );
    }
}

proptest! {
    #[test]
    fn user_data_is_equal_in_every_tree_and_meta_data_has_one_key_per_line(
        user_data in "[ -~\n]{1,200}", comment in "[ -~]{0,40}",
    ) {
        let key = format!("{} {comment}", crate::common::KEY);
        let documents = render(&Source {
            user_data: Some(Secret::new(user_data.clone())),
            ssh_keys: vec![key.clone()],
            ..source()
        });
        for path in ["/openstack/latest/user_data", "/latest/user-data", "/nocloud/user-data"] {
            prop_assert_eq!(get(&documents, path).1, user_data.as_str());
        }
        let meta_data = get(&documents, "/nocloud/meta-data").1;
        let last = meta_data.lines().last().unwrap();
        let quoted = last.strip_prefix("- ").unwrap();
        prop_assert_eq!(serde_json::from_str::<String>(quoted).unwrap(), key);
        prop_assert_eq!(meta_data.lines().count(), 5);
    }
}

/// The usual guest with further nics: one on a bridge with another DHCP server, and one with a fixed address.
fn several(first_is_static: bool) -> Source {
    let mut source = source();
    let usual = source.nics.remove(0);
    let bridge = waifud_cloudinit::NicDoc {
        name: "eth1".parse().unwrap(),
        mac: "52:54:00:00:00:02".parse().unwrap(),
        address: Some(waifud_cloudinit::NicAddress {
            net: "192.168.1.50/24".parse().unwrap(),
            is_static: true,
            gateway: Some("192.168.1.1".parse().unwrap()),
        }),
        mtu: None,
        dns: vec!["192.168.1.1".parse().unwrap()],
    };
    source.nics = if first_is_static {
        vec![bridge, usual]
    } else {
        vec![usual, bridge]
    };
    source
}

/// Without a document, cloud-init asks for an address by DHCP on the first nic that it finds.
#[test]
fn a_single_nic_by_dhcp_needs_no_network_document_and_every_other_guest_does() {
    let has_document = |nics| {
        let documents = render(&Source { nics, ..source() });
        !get(&documents, "/nocloud/network-config").1.is_empty()
    };
    let nics = several(false).nics;
    let (by_dhcp, fixed) = (nics[0].clone(), nics[1].clone());
    let second = waifud_cloudinit::NicDoc {
        name: fixed.name.clone(),
        mac: fixed.mac,
        ..by_dhcp.clone()
    };
    assert!(!has_document(vec![by_dhcp.clone()]));
    assert!(has_document(vec![fixed.clone()]));
    assert!(has_document(vec![by_dhcp.clone(), second]));
    assert!(has_document(vec![by_dhcp, fixed]));
}

#[test]
fn only_the_first_of_several_nics_has_a_default_route_and_name_servers() {
    for first_is_static in [true, false] {
        let documents = render(&several(first_is_static));
        let (_, config) = get(&documents, "/nocloud/network-config");
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let (fixed, asked) = (&config["ethernets"]["eth1"], &config["ethernets"]["eth0"]);
        assert_eq!(fixed["addresses"][0], "192.168.1.50/24");
        assert_eq!(fixed["routes"].is_array(), first_is_static);
        assert_eq!(fixed["nameservers"].is_object(), first_is_static);
        assert_eq!(asked["dhcp4"], true);
        assert_eq!(
            asked["dhcp4-overrides"]["use-routes"] == false,
            first_is_static
        );
        let (_, data) = get(&documents, "/openstack/latest/network_data.json");
        let data: serde_json::Value = serde_json::from_str(&data).unwrap();
        let types: Vec<_> = data["networks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["type"].as_str().unwrap())
            .collect();
        let wanted = if first_is_static {
            ["ipv4", "ipv4_dhcp"]
        } else {
            ["ipv4_dhcp", "ipv4"]
        };
        assert_eq!(types, wanted);
        let fixed = &data["networks"][usize::from(!first_is_static)];
        assert_eq!(
            (&fixed["ip_address"], &fixed["netmask"]),
            (&"192.168.1.50".into(), &"255.255.255.0".into())
        );
        assert_eq!(
            fixed["routes"].as_array().unwrap().len(),
            usize::from(first_is_static)
        );
        let server = if first_is_static {
            "192.168.1.1"
        } else {
            "10.144.3.1"
        };
        assert_eq!(
            data["services"],
            serde_json::json!([{"type": "dns", "address": server}])
        );
    }
}
