//! Hints in English, without the syntax of any client.

use super::{Hint, HintAction as A, HintKind, HintWhen};

impl HintWhen {
    /// The circumstance as a clause that precedes the action.
    pub const fn english(self) -> &'static str {
        match self {
            Self::DeletedSinceBackup => "if it was deleted since the backup",
            Self::NotDeletedSinceBackup => "otherwise, to create it again with an empty disk",
            Self::SameMachine => "if this is the same machine",
            Self::Booting => "if the guest is booting",
            Self::Otherwise => "otherwise",
            Self::CannotLogIn => "if you cannot log in",
            Self::Uploaded => "if it was uploaded",
            Self::Unused => "if no instance uses it",
            Self::Administrator => "as an administrator",
        }
    }
}

impl Hint {
    /// The hint in English; the text of the server if this version does not know the action or the circumstance.
    pub fn english(&self) -> String {
        let Some(action) = self.known_action() else {
            return self.text.clone();
        };
        match (&self.when, self.known_when()) {
            (Some(_), None) => self.text.clone(),
            (_, Some(when)) => format!("{}, {}", when.english(), self.phrase(&action)),
            (None, None) => self.phrase(&action),
        }
    }

    /// The action on the object in English.
    fn phrase(&self, action: &A) -> String {
        let object = self.object_in_english();
        match action {
            A::List => format!("list the {}", plural(self.kind())),
            A::Show => format!("show {object}"),
            A::Explain => format!("explain the state of {object}"),
            A::Start => format!("start {object}"),
            A::Delete { unmanaged: false } => format!("delete {object}"),
            A::Delete { unmanaged: true } => format!("delete the unmanaged {object}"),
            A::Cancel => "cancel the download".to_owned(),
            A::Adopt { rename: false } => format!("adopt {object}"),
            A::Adopt { rename: true } => format!("adopt {object} under another name"),
            A::Resize { memory_bytes } => {
                format!("give {object} {} memory or less", memory_bytes.exact())
            }
            A::Unprotect => format!("remove the protection of {object}"),
            A::Unpublish { port, protocol } => {
                format!("stop publishing port {port}/{protocol} of {object}")
            }
            A::CreateToken { role: None } => "create a token".to_owned(),
            A::CreateToken { role: Some(role) } => format!("create a token with the role {role}"),
            A::Revoke => format!("revoke {object}"),
            A::CreateJoinToken => match self.name() {
                Some(node) => format!("create a join token for node {node}"),
                None => "create a join token".to_owned(),
            },
            A::Rename => format!("rename {object}"),
            A::Confirm => format!("confirm {object}"),
            A::Uncordon => format!("uncordon {object}"),
            A::Recreate => format!("recreate {object} with new disks"),
            A::CancelMove => format!("cancel the move of {object}"),
            A::AllowNewAddress { to } => {
                format!("move {object} to {to} and allow a new address")
            }
            A::Drain { new_address: true } => format!("drain {object} and allow new addresses"),
            A::Drain { new_address: false } => format!("drain {object}"),
            A::RemoveForced => format!("remove {object}, if it will never come back"),
            A::SwitchOn => format!("switch {object} on"),
            A::AddNode => "add a machine that runs instances".to_owned(),
            A::CreateBridge { bridge } => format!(
                "create bridge {bridge} on {object} (docs/guides/lan.md)"
            ),
            A::AddNetwork { bridge: None } => "add a network for a bridge that exists on the nodes".to_owned(),
            A::AddNetwork {
                bridge: Some(bridge),
            } => format!("add {object} for bridge {bridge}"),
            A::FreeSpace => {
                "free some space: delete unused templates and images; nothing was changed, guests keep running, and waifud \
                 continues automatically when there is space"
                    .to_owned()
            }
            A::Download => match self.name() {
                Some(_) => format!("download {object}"),
                None => "download a template".to_owned(),
            },
            A::Refresh => format!("download the image of {object} again"),
            A::Upload => match self.name() {
                Some(_) => format!("upload the image of {object}"),
                None => "upload the image".to_owned(),
            },
            A::GiveChecksum => {
                "set checksum, or checksums_url to the publisher's list; insecure_no_checksum skips the check".to_owned()
            }
            A::NameInChecksums => {
                "set checksums_file to the name of the image in the list".to_owned()
            }
            A::OpenConsole => format!("check the console of {object}"),
            A::Rescue => format!("repair {object} with a rescue system"),
            A::EndRescue => format!("end the rescue of {object}"),
            A::ReadCloudInitLog => "see the output of cloud-init".to_owned(),
            A::ReRunCloudInit => {
                "make cloud-init run everything again at the next boot; an ordinary reboot runs only bootcmd and per-boot scripts"
                    .to_owned()
            }
            A::InstallGuestAgent => "install qemu-guest-agent in the guest".to_owned(),
            A::WaitUntilReady => format!("wait until {object} is ready"),
            A::ShowAddresses => format!("check the addresses of {object}"),
            A::SetMinimum { bytes, .. } => format!("use {} or more", bytes.exact()),
            A::Omit { field } => format!("omit {field}"),
            A::AllowAddresses => "use allow_addresses for further addresses".to_owned(),
        }
    }

    fn object_in_english(&self) -> String {
        let kind = match (self.kind(), &self.object) {
            (Some(kind), _) => kind.as_str(),
            (None, Some(object)) => &object.kind,
            (None, None) => "object",
        };
        match self.name() {
            Some(name) => format!("{kind} {name}"),
            None => format!("the {kind}"),
        }
    }
}

fn plural(kind: Option<HintKind>) -> &'static str {
    match kind {
        Some(HintKind::Instance) => "instances",
        Some(HintKind::Template) => "templates",
        Some(HintKind::Image) => "images",
        Some(HintKind::Catalog) => "images in the catalog",
        Some(HintKind::Download) => "templates and downloads",
        Some(HintKind::Network) => "networks",
        Some(HintKind::Node) => "nodes",
        Some(HintKind::Token) => "tokens",
        None => "objects",
    }
}
