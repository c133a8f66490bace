//! `waifuctl df`

use serde::Serialize;
use waifud_api::{DirectorySpace, Image};
use waifud_types::ByteSize;

use super::doctor::free;
use super::image::images;
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;
use crate::pools::{NodePool, pools_of, shown};

/// The output of `df`.
#[derive(Debug, Serialize)]
struct Usage {
    pools: Vec<NodePool>,
    images: Vec<Image>,
    images_bytes: ByteSize,
    state_dir: Option<DirectorySpace>,
}

/// Prints the usage of pools and of the image store.
pub async fn run(context: &Context) -> Result<(), Failure> {
    let images = images(context).await?;
    let usage = Usage {
        pools: pools_of(pagination::all_nodes(context).await?),
        images_bytes: ByteSize(images.iter().map(|image| image.size_bytes.bytes()).sum()),
        images,
        state_dir: context.client.server().await?.map(|it| it.state_dir),
    };
    context.printer.print(&usage, || {
        let store = format!(
            "{}\n\nimage store: {} in {} images",
            shown(&usage.pools),
            usage.images_bytes,
            usage.images.len()
        );
        match &usage.state_dir {
            Some(dir) => format!("{store}\nstate_dir:   {}", free(dir)),
            None => store,
        }
    })
}
