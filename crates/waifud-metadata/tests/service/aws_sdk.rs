//! The client of AWS' SDK for Python (Debian's botocore) in a guest's namespace, through the real tunnel: IMDSv2 and v1.

use serde_json::json;
use waifud_cloudinit::instance_id;
use waifud_kit::testing::skip;
use waifud_types::InstanceId;

use crate::cloud_init::{command, guest_of, observed, python, with_the_service};
use crate::kit::{World, guest_address};
use crate::tunnel::{furnish, start};

#[test]
fn an_aws_sdk_gets_a_token_and_reads_with_it() {
    let Some(world) = World::new(1) else { return };
    if let Err(error) = command("/usr/bin/python3", &["-c", "import botocore"]) {
        skip(&format!("{error:#}: apt-get install python3-botocore"));
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (service, _stop) = start(&world, root.path());
    let _node = world.start_node();
    let guest = guest_of(InstanceId::generate(), None);
    furnish(&world, &service, std::slice::from_ref(&guest));
    with_the_service(&world);

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/service/aws_sdk.py");
    let seen = python(&world, script, &[], None);
    let iid = instance_id(guest.id, 1);
    assert_eq!(
        seen,
        json!({
            "token": true,
            "instance-id": iid,
            "without a token": iid,
            "local-ipv4": guest_address(0),
            "a wrong token is refused": true,
            // The SDK derives the region from the zone by removing its last letter; the zone is the node's name.
            "region": "alde",
            "credentials": {},
        })
    );
    let (asked, _) = observed(&world, &service);
    assert_eq!(asked, REQUESTS, "\n{}", asked.join("\n"));
}

/// No request is repeated. The only failed ones are for credentials, which do not exist.
const REQUESTS: [&str; 9] = [
    "200 /latest/api/token",
    "200 /latest/meta-data/instance-id",
    "200 /latest/meta-data/instance-id",
    "200 /latest/meta-data/local-ipv4",
    "401 /latest/meta-data/instance-id",
    "200 /latest/api/token",
    "200 /latest/meta-data/placement/availability-zone/",
    "200 /latest/api/token",
    "404 /latest/meta-data/iam/security-credentials/",
];
