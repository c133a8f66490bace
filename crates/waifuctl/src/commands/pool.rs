//! `waifuctl pool list`, `df` and `image …`: where bytes lie.

use serde::Serialize;
use waifud_api::{DirectorySpace, Image, Node};
use waifud_types::node::PoolFacts;
use waifud_types::{ByteSize, Digest, Name};

use super::doctor::{Check, Verdict, ok};
use super::server;
use crate::cli_pool::{ImageCommand, PoolCommand};
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;
use crate::printer::table;
use crate::text::escape;

/// A pool and its node.
#[derive(Debug, Serialize)]
struct NodePool {
    node: Name,
    #[serde(flatten)]
    pool: PoolFacts,
}

/// What `df` prints.
#[derive(Debug, Serialize)]
struct Usage {
    pools: Vec<NodePool>,
    images: Vec<Image>,
    images_bytes: ByteSize,
    state_dir: Option<DirectorySpace>,
}

/// Runs one of the pool verbs.
pub async fn run(context: &Context, command: PoolCommand) -> Result<(), Failure> {
    let PoolCommand::List { node } = command;
    let pools = match node {
        Some(name) => pools_of(vec![context.client.node(&name).await?]),
        None => pools_of(pagination::all_nodes(context).await?),
    };
    let items = serde_json::json!({"items": pools, "next": null});
    context.printer.print(&items, || shown(&pools))
}

/// Runs one of the image verbs.
pub async fn image(context: &Context, command: ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::List => {
            let images = images(context).await?;
            let items = serde_json::json!({"items": images, "next": null});
            context.printer.print(&items, || shown_images(&images))
        }
        ImageCommand::Delete { digest } => {
            let wanted = find(context, &digest).await?;
            context.client.delete_image(wanted).await?;
            let result = serde_json::json!({"digest": wanted, "state": "deleted"});
            context
                .printer
                .print(&result, || format!("{}: deleted", wanted.short()))
        }
    }
}

/// Pools and the image store, with what they hold.
pub async fn df(context: &Context) -> Result<(), Failure> {
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
            Some(dir) => format!("{store}\nstate_dir:   {}", server::free(dir)),
            None => store,
        }
    })
}

/// For `doctor`: what is known of and not there.
pub(super) fn image_check(images: &[Image]) -> Option<Check> {
    let missing: Vec<String> = images
        .iter()
        .filter(|image| !image.available)
        .map(|image| image.digest.short())
        .collect();
    (!missing.is_empty()).then(|| {
        ok(
            "image store",
            format!("files are missing or damaged: {}", missing.join(", ")),
        )
        .but(
            Verdict::Warn,
            "waifuctl template refresh --all downloads them; uploaded ones: waifuctl template add NAME --file FILE",
        )
    })
}

pub(super) async fn images(context: &Context) -> Result<Vec<Image>, Failure> {
    let whole = pagination::list(async |query| context.client.images(query).await).await?;
    Ok(whole.items)
}

/// The image whose digest begins with these digits, as lists show six of them.
async fn find(context: &Context, text: &str) -> Result<Digest, Failure> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let found: Vec<_> = images(context)
        .await?
        .into_iter()
        .filter(|image| image.digest.hex().starts_with(digits))
        .collect();
    match found.as_slice() {
        [one] => Ok(one.digest),
        [] => Err(
            Failure::input("not-found", format!("there is no image {text:?}"))
                .field("digest")
                .hint("waifuctl image list shows what there is"),
        ),
        _ => Err(
            Failure::input("ambiguous", format!("several images begin with {text:?}"))
                .field("digest")
                .hint("give more of its digits"),
        ),
    }
}

fn pools_of(nodes: Vec<Node>) -> Vec<NodePool> {
    nodes
        .into_iter()
        .flat_map(|node| {
            let name = node.name;
            node.pools.into_iter().map(move |pool| NodePool {
                node: name.clone(),
                pool,
            })
        })
        .collect()
}

/// Hundredths in use.
pub fn percent(pool: &PoolFacts) -> u64 {
    let size = pool.size_bytes.bytes().max(1);
    pool.used_bytes.bytes().saturating_mul(100) / size
}

fn shown(pools: &[NodePool]) -> String {
    let rows = pools.iter().map(|NodePool { node, pool }| {
        vec![
            node.to_string(),
            pool.name.to_string(),
            escape(&pool.kind),
            pool.size_bytes.to_string(),
            pool.used_bytes.to_string(),
            format!("{}%", percent(pool)),
            pool.promised_bytes.to_string(),
            escape(&pool.health),
        ]
    });
    let headers = [
        "NODE", "POOL", "KIND", "SIZE", "USED", "USE%", "PROMISED", "HEALTH",
    ];
    table(&headers, rows.collect())
}

fn shown_images(images: &[Image]) -> String {
    let rows = images.iter().map(|image| {
        vec![
            image.digest.short(),
            image.size_bytes.to_string(),
            image.virtual_size_bytes.to_string(),
            crate::text::age(image.created_at, jiff::Timestamp::now()),
            if image.available { "yes" } else { "missing" }.to_owned(),
        ]
    });
    table(
        &["IMAGE", "SIZE", "MIN DISK", "AGE", "FILE"],
        rows.collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(byte: u8, available: bool) -> Image {
        Image {
            digest: Digest::from_bytes([byte; 32]),
            size_bytes: ByteSize::mib(1),
            virtual_size_bytes: ByteSize::mib(2),
            available,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_missing_image_file_is_shown_and_found_by_doctor() {
        let images = [image(0xaa, true), image(0xbb, false)];
        let text = shown_images(&images);
        let line = |digits| text.lines().find(|line| line.contains(digits)).unwrap();
        assert!(line("aaaaaa").ends_with("yes") && line("bbbbbb").ends_with("missing"));
        let check = image_check(&images).unwrap();
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.message.contains("bbbbbb") && !check.message.contains("aaaaaa"));
        assert_eq!(image_check(&images[..1]), None);
    }
}
