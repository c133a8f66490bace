//! All documents of one instance, rendered and immutable: the contents of a bundle.
//!
//! A bundle contains finished texts instead of data to render. So it contains exactly what the guest reads, even if the
//! metadata service has another version than waifud.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use waifud_types::{InstanceId, Secret};

/// The documents of one instance. `Debug` prints the instance but none of the texts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Documents {
    /// The instance that they belong to.
    pub(crate) instance: InstanceId,
    /// cloud-init's instance-id.
    pub(crate) instance_id: String,
    /// The documents below `/openstack/VERSION/`.
    pub(crate) openstack: Tree,
    /// The documents below `/VERSION/`, in EC2's format.
    pub(crate) ec2: Tree,
    /// The documents below `/nocloud/` and on a disk labeled `cidata`. They always include user-data, even if it is empty:
    /// without that file cloud-init ignores the others.
    #[serde(default)]
    pub(crate) nocloud: Tree,
    /// The user-data. Stored once although it is in each tree, because it may be 1 MiB.
    pub(crate) user_data: Option<Secret<String>>,
}

/// Documents by path, without slashes at the ends.
pub(crate) type Tree = BTreeMap<String, Leaf>;

/// One document.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Leaf {
    /// Plain text.
    Text(Secret<String>),
    /// JSON, as text.
    Json(Secret<String>),
    /// The listing of a directory, if it differs from the names of its children.
    Listing(Secret<String>),
    /// The user-data.
    UserData,
}

impl Leaf {
    pub(crate) fn text(value: impl Into<String>) -> Self {
        Self::Text(Secret::new(value.into()))
    }
}

impl Documents {
    /// The instance that the documents belong to.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The user-data, if there is any. Answers borrow this text.
    pub fn user_data(&self) -> Option<&str> {
        self.user_data.as_ref().map(|text| text.expose().as_str())
    }

    /// The public SSH keys of the guest, one line each.
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

    /// cloud-init's instance-id, which the guest reports when it phones home.
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }
}
