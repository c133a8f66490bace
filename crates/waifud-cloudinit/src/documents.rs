//! All of one instance's documents, rendered and immutable: what a bundle holds.
//!
//! They are kept as trees of finished texts, not as facts to render from. So a bundle says exactly what the guest
//! reads, and a metadata service of another version than waifud changes nothing about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use waifud_types::{InstanceId, Secret};

/// The documents of one instance. `Debug` shows whose they are and none of their text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Documents {
    /// Whose they are.
    pub(crate) instance: InstanceId,
    /// cloud-init's instance-id.
    pub(crate) instance_id: String,
    /// What lies below `/openstack/VERSION/`.
    pub(crate) openstack: Tree,
    /// What lies below `/VERSION/`, as EC2 has it.
    pub(crate) ec2: Tree,
    /// What lies below `/nocloud/`, and on a disk labelled `cidata`. User-data is in it whether there is any or not:
    /// without that file cloud-init takes nothing of the others.
    #[serde(default)]
    pub(crate) nocloud: Tree,
    /// Once only, though it is in each tree: it may be 1 MiB.
    pub(crate) user_data: Option<Secret<String>>,
}

/// Leaves by their path, without a slash at either end.
pub(crate) type Tree = BTreeMap<String, Leaf>;

/// One document.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Leaf {
    /// Plain text.
    Text(Secret<String>),
    /// JSON, as text.
    Json(Secret<String>),
    /// What a directory's listing says instead of the names of its children.
    Listing(Secret<String>),
    /// The user-data.
    UserData,
}

impl Documents {
    /// Whose documents they are.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The user-data, if there is any. An answer with it borrows this very text.
    pub fn user_data(&self) -> Option<&str> {
        self.user_data.as_ref().map(|text| text.expose().as_str())
    }

    /// Public SSH keys, one line each, as the guest is given them.
    pub fn ssh_keys(&self) -> Vec<String> {
        let prefix = "meta-data/public-keys/";
        self.ec2
            .iter()
            .filter(|(path, _)| path.starts_with(prefix) && path.ends_with("/openssh-key"))
            .filter_map(|(_, leaf)| match leaf {
                Leaf::Text(text) => Some(text.expose().trim().to_owned()),
                _ => None,
            })
            .collect()
    }

    /// cloud-init's instance-id: what the guest says that it is when it phones home.
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }
}
