//! Hints: what the user can do next, as an action on an object.
//!
//! Each client words a hint for its users: waifuctl as a command line, a panel as a button. `text` is the same in English,
//! for clients that do not know the action. ADR 0017 has the reasons.

mod english;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use waifud_types::{ByteSize, Coded, Name, Role};

/// A step that the user can take.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Hint {
    /// What to do, for example `start`; `advice` if only `text` describes it. Further actions may be added.
    pub action: String,
    /// The object of the action; null if there is none.
    #[serde(default)]
    pub object: Option<HintObject>,
    /// Arguments of the action, for example `memory_bytes`.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub arguments: Map<String, Value>,
    /// The circumstance in which the action helps, for example `deleted-since-backup`; null if it always does.
    #[serde(default)]
    pub when: Option<String>,
    /// The hint in English.
    pub text: String,
}

/// The object of a hint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HintObject {
    /// Type of the object: `instance`, `template`, `node` and others.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name or id of the object; null for all objects of the type, or if the client knows which one it is.
    #[serde(default)]
    pub name: Option<String>,
}

/// The actions, with their arguments.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "code", content = "fields")]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum HintAction {
    /// List the objects of a type.
    List,
    /// Show an object.
    Show,
    /// Show the explanation of an instance's state.
    Explain,
    /// Start an instance.
    Start,
    /// Delete an object; with `unmanaged`, one that is not in waifud's database.
    Delete {
        /// Whether the object is unmanaged.
        unmanaged: bool,
    },
    /// Cancel the download of a template.
    Cancel,
    /// Bring an unmanaged instance under management, optionally under another name.
    Adopt {
        /// Whether it needs another name.
        rename: bool,
    },
    /// Give an instance at most this much memory.
    Resize {
        /// The memory.
        memory_bytes: ByteSize,
    },
    /// Remove the protection against deletion.
    Unprotect,
    /// Stop publishing the port of an instance.
    Unpublish {
        /// The port of the node.
        port: u16,
        /// `tcp` or `udp`.
        protocol: String,
    },
    /// Create an API token.
    CreateToken {
        /// The role that it needs; null if any will do.
        role: Option<Role>,
    },
    /// Revoke a token.
    Revoke,
    /// Create a join token, for the named node if there is one.
    CreateJoinToken,
    /// Rename a node.
    Rename,
    /// Confirm a node after waifud's database was restored.
    Confirm,
    /// Let a node accept new instances again.
    Uncordon,
    /// Create an instance again whose node was removed with its disks.
    Recreate,
    /// Cancel the move of an instance.
    CancelMove,
    /// Repeat the move of an instance that may get a new address.
    AllowNewAddress {
        /// Name of the node that it moves to.
        to: String,
    },
    /// Move all instances of a node to others.
    Drain {
        /// Whether they may get other addresses.
        new_address: bool,
    },
    /// Remove a node that will not come back, with the instances that are on it.
    RemoveForced,
    /// Switch a node on.
    SwitchOn,
    /// Add a node to the cluster.
    AddNode,
    /// Create a bridge on a node.
    CreateBridge {
        /// Name of the bridge.
        bridge: String,
    },
    /// Add a network, for a bridge of the nodes.
    AddNetwork {
        /// Name of the bridge; null if the user chooses it.
        bridge: Option<String>,
    },
    /// Free space in waifud's `state_dir`.
    FreeSpace,
    /// Download a template from the catalog or from a URL.
    Download,
    /// Download a template's image again.
    Refresh,
    /// Upload a template's image.
    Upload,
    /// Give the checksum of an image, or the list that contains it.
    GiveChecksum,
    /// Give the name of the image in the list of checksums.
    NameInChecksums,
    /// Open the console of an instance.
    OpenConsole,
    /// Boot a rescue system to repair an instance.
    Rescue,
    /// Boot an instance from its own disk again.
    EndRescue,
    /// Read the output of cloud-init.
    ReadCloudInitLog,
    /// Have cloud-init treat the next boot as the first one.
    ReRunCloudInit,
    /// Install qemu-guest-agent in the guest.
    InstallGuestAgent,
    /// Wait until an instance is ready.
    WaitUntilReady,
    /// Show the addresses of an instance.
    ShowAddresses,
    /// Set a size to a minimum.
    SetMinimum {
        /// The field of the request.
        field: String,
        /// The minimum.
        bytes: ByteSize,
    },
    /// Omit a field.
    Omit {
        /// The field of the request.
        field: String,
    },
    /// Allow a nic more addresses.
    AllowAddresses,
}

/// When a hint applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HintWhen {
    /// The instance was deleted since the backup.
    DeletedSinceBackup,
    /// The instance was not deleted since the backup.
    NotDeletedSinceBackup,
    /// It is the machine that joined before.
    SameMachine,
    /// The guest is booting.
    Booting,
    /// The circumstance of the previous hint does not apply.
    Otherwise,
    /// Logging in to the guest is not possible.
    CannotLogIn,
    /// The image was uploaded.
    Uploaded,
    /// No instance uses the object.
    Unused,
    /// The caller is an administrator, or asks one.
    Administrator,
}

/// The types of objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HintKind {
    /// An instance.
    Instance,
    /// A template.
    Template,
    /// An image.
    Image,
    /// The catalog of images that can be downloaded.
    Catalog,
    /// A running or failed download.
    Download,
    /// A network.
    Network,
    /// A node.
    Node,
    /// An API token.
    Token,
}

impl HintKind {
    /// The kind's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Template => "template",
            Self::Image => "image",
            Self::Catalog => "catalog",
            Self::Download => "download",
            Self::Network => "network",
            Self::Node => "node",
            Self::Token => "token",
        }
    }

    /// The kind with this name on the wire.
    pub fn named(name: &str) -> Option<Self> {
        Self::deserialize(Value::from(name)).ok()
    }
}

/// The action of hints that are only text.
pub const ADVICE: &str = "advice";

impl Hint {
    fn from_action(action: &HintAction, object: Option<(HintKind, Option<String>)>) -> Self {
        let Coded { code, fields } = Coded::encode(action);
        let mut hint = Self {
            action: code,
            object: object.map(|(kind, name)| HintObject {
                kind: kind.as_str().to_owned(),
                name,
            }),
            arguments: fields,
            when: None,
            text: String::new(),
        };
        hint.text = hint.english();
        hint
    }

    /// An action without an object.
    pub fn action(action: &HintAction) -> Self {
        Self::from_action(action, None)
    }

    /// An action on a named object.
    pub fn on(action: &HintAction, kind: HintKind, name: impl Into<String>) -> Self {
        Self::from_action(action, Some((kind, Some(name.into()))))
    }

    /// An action on a type of objects, or on an object that the client knows.
    pub fn on_kind(action: &HintAction, kind: HintKind) -> Self {
        Self::from_action(action, Some((kind, None)))
    }

    /// Advice that only the text describes.
    pub fn advice(text: impl Into<String>) -> Self {
        Self {
            action: ADVICE.to_owned(),
            object: None,
            arguments: Map::new(),
            when: None,
            text: text.into(),
        }
    }

    /// Deletion of an instance.
    pub fn delete(instance: &Name) -> Self {
        let action = HintAction::Delete { unmanaged: false };
        Self::on(&action, HintKind::Instance, instance.as_str())
    }

    /// Sets the circumstance.
    #[must_use]
    pub fn when(mut self, when: HintWhen) -> Self {
        self.when = serde_json::to_value(when)
            .ok()
            .and_then(|when| when.as_str().map(str::to_owned));
        self.text = self.english();
        self
    }

    /// The action, unless this version does not know it or one of its arguments.
    pub fn known_action(&self) -> Option<HintAction> {
        let coded = Coded {
            code: self.action.clone(),
            fields: self.arguments.clone(),
        };
        coded.decode()
    }

    /// The circumstance, unless there is none or this version does not know it.
    pub fn known_when(&self) -> Option<HintWhen> {
        let when = self.when.as_deref()?;
        HintWhen::deserialize(Value::from(when)).ok()
    }

    /// The type of the object, unless there is none or this version does not know it.
    pub fn kind(&self) -> Option<HintKind> {
        HintKind::named(&self.object.as_ref()?.kind)
    }

    /// The name of the object.
    pub fn name(&self) -> Option<&str> {
        self.object.as_ref()?.name.as_deref()
    }

    /// Names the object, if it is of this type and has no name. A list stays a list.
    pub fn about(&mut self, kind: HintKind, name: &str) {
        let unnamed = self.kind() == Some(kind) && self.name().is_none();
        if unnamed && self.known_action() != Some(HintAction::List) {
            self.object = Some(HintObject {
                kind: kind.as_str().to_owned(),
                name: Some(name.to_owned()),
            });
            self.text = self.english();
        }
    }

    /// Whether it is this action on the named object.
    pub fn is(&self, action: &HintAction, kind: HintKind, name: &str) -> bool {
        let same = self.known_action().as_ref() == Some(action);
        same && self.kind() == Some(kind) && self.name() == Some(name)
    }
}

impl From<&str> for Hint {
    fn from(text: &str) -> Self {
        Self::advice(text)
    }
}

impl From<String> for Hint {
    fn from(text: String) -> Self {
        Self::advice(text)
    }
}

/// All hints in one line of English.
pub fn in_english(hints: &[Hint]) -> Option<String> {
    let texts: Vec<_> = hints.iter().map(|hint| hint.text.as_str()).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_survives_the_wire() {
        let memory_bytes = ByteSize(3 << 30);
        let action = HintAction::Resize { memory_bytes };
        let hint = Hint::on(&action, HintKind::Instance, "web");
        let json = serde_json::to_value(&hint).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "action": "resize", "object": { "type": "instance", "name": "web" },
                "arguments": { "memory_bytes": 3_221_225_472_u64 }, "when": null,
                "text": "give instance web 3G memory or less",
            })
        );
        let back: Hint = serde_json::from_value(json).unwrap();
        assert_eq!(back, hint);
        assert!(back.is(&action, HintKind::Instance, "web"));
    }

    #[test]
    fn actions_without_arguments_are_known_with_and_without_the_empty_object() {
        let text = r#"{"action":"start","object":{"type":"instance","name":"web"},"arguments":{},"when":null,"text":"x"}"#;
        let full: Hint = serde_json::from_str(text).unwrap();
        let short: Hint = serde_json::from_str(r#"{"action":"start","text":"x"}"#).unwrap();
        for hint in [full, short] {
            assert_eq!(hint.known_action(), Some(HintAction::Start));
        }
    }

    #[test]
    fn an_unknown_action_keeps_its_text_and_its_fields() {
        let json = serde_json::json!({
            "action": "defragment", "object": { "type": "galaxy", "name": "m31" },
            "arguments": { "speed": 3 }, "when": "full-moon", "text": "defragment it",
        });
        let hint: Hint = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(hint.known_action(), None);
        assert_eq!((hint.kind(), hint.known_when()), (None, None));
        assert_eq!(hint.text, "defragment it");
        assert_eq!(serde_json::to_value(&hint).unwrap(), json);
    }
}
