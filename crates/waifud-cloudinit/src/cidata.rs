//! The disk labelled `cidata`: NoCloud's documents as a filesystem, for guests that can't ask a service.

use crate::{Documents, documents::Leaf, iso9660};

/// The label by which cloud-init finds the disk. In small letters, as everybody writes it, though ISO 9660 would have
/// capitals: versions differ in what else they take.
const LABEL: &str = "cidata";

impl Documents {
    /// The whole disk: ISO 9660 with Joliet names. The same documents make the same bytes. They hold what the guest may
    /// know and nobody else.
    pub fn cidata(&self) -> Vec<u8> {
        let files: Vec<(&str, &[u8])> = self
            .nocloud
            .iter()
            .map(|(name, leaf)| {
                let text = match leaf {
                    Leaf::Text(text) | Leaf::Json(text) | Leaf::Listing(text) => {
                        text.expose().as_str()
                    }
                    Leaf::UserData => self.user_data().unwrap_or_default(),
                };
                (name.as_str(), text.as_bytes())
            })
            .collect();
        iso9660::volume(LABEL, &files)
    }
}
