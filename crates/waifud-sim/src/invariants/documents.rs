//! A guest can read only its own documents.

use waifud_kit::sync::lock;
use waifud_types::{Digest, InstanceId};

use super::snapshot::{Database, Snapshot};
use super::unknown::may_share;
use super::{Opened, Violation, hold};
use crate::world::World;

/// metadatad serves an instance's own documents only, at an address that waifud has reserved for this instance. The documents
/// are opened with the key of their assignment, as the guest reads them.
pub(super) fn documents_are_served_to_the_owner_of_the_address_only(
    world: &World,
    nodes: &[Snapshot<'_>],
    database: &Database,
) -> Result<(), Violation> {
    for at in nodes {
        let node = &at.node.name;
        for (id, served) in &at.held {
            let owner = database.owners.get(&served.address);
            hold!(
                world,
                owner == Some(id) || may_share(world, *id, owner.copied()),
                documents_are_served_to_the_owner_of_the_address_only,
                "{node} serves the documents of {id} at {}, which waifud has reserved for {owner:?}",
                served.address
            );
            let opened = opened(world, at, *id, served.bundle.digest);
            hold!(
                world,
                opened.instance.as_ref() == Ok(id),
                documents_are_served_to_the_owner_of_the_address_only,
                "{node} serves {id} the documents of {:?}",
                opened.instance
            );
        }
    }
    Ok(())
}

/// What a guest reads.
pub(super) fn opened(world: &World, at: &Snapshot<'_>, id: InstanceId, bundle: Digest) -> Opened {
    if let Some(opened) = lock(&world.observed).opened.get(&bundle) {
        return opened.clone();
    }
    let documents = at.node.metadata.documents(id);
    let opened = match documents {
        None => Opened {
            instance: Err("there are none".to_owned()),
            user_data: None,
        },
        Some(Err(error)) => Opened {
            instance: Err(error),
            user_data: None,
        },
        Some(Ok(documents)) => Opened {
            instance: Ok(documents.instance()),
            user_data: documents
                .user_data()
                .map(|text| Digest::of(text.as_bytes())),
        },
    };
    lock(&world.observed).opened.insert(bundle, opened.clone());
    opened
}
