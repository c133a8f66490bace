//! What each datasource finds beyond OpenStack's tree, and the disk.

use proptest::prelude::*;
use waifud_cloudinit::{GuestRequest, Method, Source, path_of, render};
use waifud_types::Secret;
use waifud_types::template::{Datasource, NOCLOUD_SEED};

use crate::common::{ask, documents, get, source};

const NAMES: [&str; 4] = ["meta-data", "network-config", "user-data", "vendor-data"];

/// The directory that a DMI serial number tells cloud-init to fetch from.
fn seed() -> &'static str {
    let (_, url) = NOCLOUD_SEED.split_once(";s=").unwrap();
    assert!(url.ends_with('/'), "both versions of cloud-init need it");
    path_of(url)
}

#[test]
fn nocloud_answers_all_four_documents_whatever_there_is_to_say() {
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
fn ec2_has_its_nics_where_its_network_configuration_is_made_of_them_and_others_do_not() {
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
fn the_disk_is_the_same_for_the_same_documents_and_holds_each_of_them() {
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
    fn user_data_is_the_same_text_in_every_tree_and_meta_data_stays_one_key_a_line(
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
