//! The disk labeled `cidata`: NoCloud's documents as a filesystem, for guests that do not use the metadata service.

use crate::{Documents, documents::Leaf, iso9660};

/// The label by which cloud-init finds the disk. It is in lower case, which all versions of cloud-init accept, although
/// ISO 9660 requires upper case.
const LABEL: &str = "cidata";

impl Documents {
    /// The image of the disk: ISO 9660 with Joliet names. The same documents give the same bytes. It contains secrets of
    /// the guest.
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
