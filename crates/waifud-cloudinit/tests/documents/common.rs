//! A source to render from, and helpers to request documents.

use waifud_cloudinit::{
    Answer, Documents, GuestRequest, NicAddress, NicDoc, Source, Tokens, VendorOptions,
    instance_id, render,
};
use waifud_types::{InstanceId, Secret};

pub const NOW: u64 = 1_800_000_000;
pub const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKmyhTZV4GUq9h7+A5C+gyHjT/lSd7pD0QFiNCU6rC5r me@desk";

pub fn source() -> Source {
    let instance: InstanceId = "0198d2a8-1111-7000-8000-00000000000a".parse().unwrap();
    Source {
        instance,
        instance_id: instance_id(instance, 1),
        hostname: "web".parse().unwrap(),
        domain: Some("waifu.internal".to_owned()),
        availability_zone: "alder".to_owned(),
        ssh_keys: vec![KEY.to_owned()],
        user_data: Some(Secret::new("#cloud-config\npackages: [htop]\n".to_owned())),
        vendor_data: VendorOptions::default(),
        datasource: waifud_types::template::Datasource::Openstack,
        nics: vec![NicDoc {
            name: "eth0".parse().unwrap(),
            mac: "52:54:00:12:34:56".parse().unwrap(),
            address: Some(NicAddress {
                net: "10.144.3.7/24".parse().unwrap(),
                is_static: false,
                gateway: Some("10.144.3.1".parse().unwrap()),
            }),
            mtu: Some(1420),
            dns: vec!["10.144.3.1".parse().unwrap()],
        }],
        default_user: None,
    }
}

pub fn documents() -> Documents {
    render(&source())
}

pub fn tokens() -> Tokens {
    Tokens::new(&[7; 32])
}

pub fn ask<'a>(documents: &'a Documents, request: &GuestRequest<'_>) -> Answer<'a> {
    documents.answer(request, &tokens(), NOW)
}

/// Status and body of a plain GET.
pub fn get(documents: &Documents, target: &str) -> (u16, String) {
    let answer = ask(documents, &GuestRequest::get(target));
    (answer.status, answer.body.into_owned())
}
