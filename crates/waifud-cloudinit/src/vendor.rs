//! Vendor-data: what waifud itself asks of cloud-init. Whatever user-data says wins, by cloud-init's own merging.

use serde_json::{Map, Value, json};

use crate::Source;

/// Where a guest reports that cloud-init is done: a POST of a form, answered for the caller's own instance only.
pub const PHONE_HOME_PATH: &str = "/waifud/phone-home";

/// Where cloud-init's reporter posts its events, one JSON object each: taken as the caller's own, whatever they say.
pub const REPORT_PATH: &str = "/waifud/cloud-init";

/// The name of our reporter. cloud-init merges dictionaries, so user-data that adds reporters of its own leaves it be.
pub(crate) const REPORTER: &str = "waifud";

/// Seconds that cloud-init waits for the answer to an event. It posts them one after the other in a thread of its own,
/// and waits for that thread at the end of each stage; after three failures in a row it drops the rest. There are no
/// retries: each costs a second, and at a reboot the first events come before the network is up.
const REPORT_TIMEOUT: u32 = 2;

/// The service's address and port, as guests know it.
const SERVICE: &str = "http://169.254.169.254";

/// How often a guest tries to report; cloud-init waits 3 s between.
const PHONE_HOME_TRIES: u32 = 5;

/// `vendor_data.json`: cloud-init reads the member `cloud-init` as it reads user-data.
pub(crate) fn openstack(source: &Source) -> Value {
    match cloud_config(source) {
        Some(text) => json!({ "cloud-init": text }),
        None => json!({}),
    }
}

/// Vendor-data as cloud-config; none where waifud asks for nothing.
pub(crate) fn cloud_config(source: &Source) -> Option<String> {
    let mut config = Map::new();
    if source.vendor_data.phone_home {
        // Only what the answer to "is it done, and is it that one?" needs. cloud-init replaces a key that is not there
        // by "N/A", and complains in its log of host keys that a guest was told not to make.
        config.insert(
            "phone_home".to_owned(),
            json!({
                "url": format!("{SERVICE}{PHONE_HOME_PATH}"),
                "post": ["instance_id", "hostname", "pub_key_ed25519"],
                "tries": PHONE_HOME_TRIES,
            }),
        );
    }
    if source.vendor_data.reports {
        config.insert(
            "reporting".to_owned(),
            json!({
                REPORTER: {
                    "type": "webhook",
                    "endpoint": format!("{SERVICE}{REPORT_PATH}"),
                    "timeout": REPORT_TIMEOUT,
                },
            }),
        );
    }
    if let Some(user) = &source.default_user {
        config.insert("user".to_owned(), json!({ "name": user }));
    }
    if config.is_empty() {
        return None;
    }
    // JSON is YAML, and needs no quoting rules of our own.
    Some(format!("#cloud-config\n{:#}\n", Value::Object(config)))
}
