//! From what is known of an instance to the documents that it reads.

use crate::{Documents, Source, documents::Tree};

/// Renders all documents of one instance. The same source gives the same documents.
pub fn render(source: &Source) -> Documents {
    Documents {
        instance: source.instance,
        instance_id: source.instance_id.clone(),
        openstack: Tree::new(),
        ec2: Tree::new(),
        user_data: source.user_data.clone(),
    }
}
