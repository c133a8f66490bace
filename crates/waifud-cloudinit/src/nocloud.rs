//! NoCloud's documents: `/nocloud/…` over HTTP, and the files of a disk labeled `cidata`.

use std::fmt::Write;

use crate::{
    Source,
    documents::{Leaf, Tree},
    network_config, vendor,
};

/// The documents by name. All four always exist: over HTTP, cloud-init requests a missing one ten times, a second apart.
pub(crate) fn tree(source: &Source) -> Tree {
    let vendor_data = vendor::cloud_config(source).unwrap_or_default();
    Tree::from([
        ("meta-data".to_owned(), Leaf::text(meta_data(source))),
        (
            "network-config".to_owned(),
            Leaf::text(network_config::document(source)),
        ),
        ("user-data".to_owned(), Leaf::UserData),
        ("vendor-data".to_owned(), Leaf::text(vendor_data)),
    ])
}

/// YAML with one key per line.
fn meta_data(source: &Source) -> String {
    let quoted = |value: &str| serde_json::Value::from(value).to_string();
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        let _infallible = writeln!(out, "{key}: {}", quoted(value));
    };
    line("instance-id", &source.instance_id);
    line("local-hostname", &source.fqdn());
    line("availability-zone", &source.availability_zone);
    if !source.ssh_keys.is_empty() {
        out.push_str("public-keys:\n");
    }
    for key in &source.ssh_keys {
        let _infallible = writeln!(out, "- {}", quoted(key));
    }
    out
}
