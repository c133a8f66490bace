//! Vendor-data: waifud's own configuration for cloud-init, which cloud-init merges with the user-data. User-data takes precedence.

use serde_json::{Map, Value, json};
use waifud_types::template::REPORT_PORT;

use crate::Source;

/// The path of cloud-init's phone-home report: a POST of a form about the caller's own instance.
pub const PHONE_HOME_PATH: &str = "/waifud/phone-home";

/// The path of the events of cloud-init's reporter: one JSON object per POST, always about the caller's own instance.
pub const REPORT_PATH: &str = "/waifud/cloud-init";

/// The name of our reporter. cloud-init merges dictionaries, so user-data with further reporters does not replace it.
pub(crate) const REPORTER: &str = "waifud";

/// How many seconds cloud-init waits for the answer to an event. It posts events one after the other in a separate thread,
/// and waits for that thread at the end of each stage. After three failures in a row it drops the remaining events. While
/// the metadata service does not answer, the node resets connections to [`REPORT_PORT`], so that no guest waits for this
/// timeout. There are no retries: each would take a second, and at a reboot the first events precede the network.
const REPORT_TIMEOUT: u32 = 2;

/// The URL of the metadata service.
const SERVICE: &str = "http://169.254.169.254";

/// How often a guest tries to report. cloud-init waits 3 s between two attempts.
const PHONE_HOME_TRIES: u32 = 5;

/// `vendor_data.json`: cloud-init reads the member `cloud-init` as it reads user-data.
pub(crate) fn openstack(source: &Source) -> Value {
    match cloud_config(source) {
        Some(text) => json!({ "cloud-init": text }),
        None => json!({}),
    }
}

/// Vendor-data as cloud-config; `None` if it would be empty.
pub(crate) fn cloud_config(source: &Source) -> Option<String> {
    let mut config = Map::new();
    let service = if source.vendor_data.report_port {
        format!("{SERVICE}:{REPORT_PORT}")
    } else {
        SERVICE.to_owned()
    };
    if source.vendor_data.phone_home {
        // Only the values that are needed to detect that this instance has finished. cloud-init replaces missing keys by "N/A", and logs
        // a warning about host keys that a guest is configured not to create.
        config.insert(
            "phone_home".to_owned(),
            json!({
                "url": format!("{service}{PHONE_HOME_PATH}"),
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
                    "endpoint": format!("{service}{REPORT_PATH}"),
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
    // JSON is valid YAML, so YAML quoting is not needed.
    Some(format!("#cloud-config\n{:#}\n", Value::Object(config)))
}
