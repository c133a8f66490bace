//! The conformance tests that every pool, real or fake, must pass.
//!
//! A violated rule is returned as a `Violation`, which the caller unwraps.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

pub use waifud_kit::conformance::Violation;
use waifud_kit::conformance::{expect, failed};
use waifud_types::{ByteSize, Digest, InstanceId, Name, PoolKind, VolumeId};

use crate::fake::image_bytes;
use crate::{ReceivedVolume, StorageError, StoragePool};

/// The id of a disk of a new, random instance.
pub fn volume_id(disk: &str) -> VolumeId {
    VolumeId {
        instance: InstanceId::generate(),
        disk: parse_name(disk),
    }
}

/// Runs all tests on an empty pool. Removes what they created, unless a rule is violated.
pub async fn run_all(pool: &dyn StoragePool) -> Result<(), Violation> {
    images_are_imported_once_and_verified(pool).await?;
    invalid_images_are_refused_and_leave_no_files(pool).await?;
    published_bytes_are_those_that_were_imported(pool).await?;
    volumes_are_cloned_grown_and_never_shrunk(pool).await?;
    volumes_without_image_or_smaller_than_it_are_refused(pool).await?;
    absent_images_and_volumes_can_be_removed(pool).await?;
    volumes_are_sent_and_received(pool).await?;
    let usage = pool.usage().await.map_err(failed("usage"))?;
    let holds = usage.used <= usage.size && usage.size.bytes() > 0 && usage.health == "ok";
    expect(
        holds,
        "the usage is within the size and the pool is healthy",
        &usage,
    )
}

/// Stages bytes like a download.
pub async fn stage(
    pool: &dyn StoragePool,
    image: Digest,
    bytes: &[u8],
) -> Result<PathBuf, Violation> {
    let path = pool
        .staging_path(image)
        .await
        .map_err(failed("staging_path"))?;
    tokio::fs::write(&path, bytes)
        .await
        .map_err(|error| Violation(format!("writing to {}: {error}", path.display())))?;
    Ok(path)
}

async fn published_bytes_are_those_that_were_imported(
    pool: &dyn StoragePool,
) -> Result<(), Violation> {
    let (bytes, image) = image_bytes(ByteSize::mib(8), 4);
    let open = async || pool.open_image(image).await.map_err(failed("open_image"));
    let before = open().await?;
    expect(before.is_none(), "a missing image has no bytes", &before)?;
    stage(pool, image, &bytes).await?;
    let imported = pool.import_image(image).await;
    imported.map_err(failed("import_image"))?;
    if let Some(mut file) = open().await? {
        let mut published = Vec::new();
        let read = file.read_to_end(&mut published);
        read.map_err(|error| Violation(error.to_string()))?;
        expect(published == bytes, "the bytes are the published ones", &())?;
    } else {
        let is_fake = matches!(pool.kind(), PoolKind::Other(_));
        expect(is_fake, "an imported image has its published bytes", &())?;
    }
    let removed = pool.ensure_image_absent(image).await;
    removed.map_err(failed("ensure_image_absent"))?;
    let after = open().await?;
    expect(after.is_none(), "a removed image has no bytes", &after)
}

async fn images_are_imported_once_and_verified(pool: &dyn StoragePool) -> Result<(), Violation> {
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    expect(!has(pool, image).await?, "an empty pool has no image", &())?;
    let staged = stage(pool, image, &bytes).await?;
    expect(
        !has(pool, image).await?,
        "a staged image is not in the pool yet",
        &(),
    )?;
    succeeds("import_image", pool.import_image(image).await)?;
    expect(
        has(pool, image).await?,
        "an imported image is in the pool",
        &(),
    )?;
    let listed = pool.images().await.map_err(failed("images"))?;
    expect(listed == [image], "an imported image is listed", &listed)?;
    expect(!staged.exists(), "the staged file is removed", &staged)?;

    let staged = stage(pool, image, &bytes).await?;
    succeeds("a second import_image", pool.import_image(image).await)?;
    expect(!staged.exists(), "the staged file is removed", &staged)?;
    succeeds(
        "import_image without a staged file",
        pool.import_image(image).await,
    )?;
    for _ in 0..2 {
        succeeds("ensure_image_absent", pool.ensure_image_absent(image).await)?;
    }
    let listed = pool.images().await.map_err(failed("images"))?;
    expect(listed.is_empty(), "a removed image is not listed", &listed)?;
    expect(
        !has(pool, image).await?,
        "a removed image is not in the pool",
        &(),
    )
}

async fn invalid_images_are_refused_and_leave_no_files(
    pool: &dyn StoragePool,
) -> Result<(), Violation> {
    let (valid, _) = image_bytes(ByteSize::mib(8), 2);
    let altered = |at: usize, value: u8| {
        let mut bytes = valid.clone();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes
    };
    // Offsets of header fields: qcow2.txt, "Header".
    let invalid: [(&str, Vec<u8>); 6] = [
        ("a file of another format", b"\x89PNG\r\n\x1a\n".to_vec()),
        ("an empty file", Vec::new()),
        (
            "a file that ends within its header",
            valid.get(..40).unwrap_or_default().to_vec(),
        ),
        ("a backing file", altered(15, 200)),
        ("an external data file", altered(79, 4)),
        ("an absurd size", altered(24, 0x7f)),
    ];
    for (name, bytes) in invalid {
        let image = Digest::of(&bytes);
        let staged = stage(pool, image, &bytes).await?;
        let refused = pool.import_image(image).await;
        let holds = matches!(refused, Err(StorageError::BadImage(_)));
        expect(holds, &format!("{name} is refused"), &refused)?;
        expect(
            !staged.exists(),
            &format!("{name}: its staged file is removed"),
            &staged,
        )?;
        expect(
            !has(pool, image).await?,
            &format!("{name} is not imported"),
            &image,
        )?;
    }

    let (_, other) = image_bytes(ByteSize::mib(8), 3);
    let staged = stage(pool, other, &valid).await?;
    let refused = pool.import_image(other).await;
    let holds = matches!(&refused, Err(StorageError::DigestMismatch { expected, actual })
        if *expected == other && *actual == Digest::of(&valid));
    expect(holds, "bytes of another digest are refused", &refused)?;
    expect(
        !staged.exists(),
        "the staged file of another digest is removed",
        &staged,
    )?;
    expect(
        !has(pool, other).await?,
        "bytes of another digest are not imported",
        &other,
    )
}

async fn volumes_are_cloned_grown_and_never_shrunk(
    pool: &dyn StoragePool,
) -> Result<(), Violation> {
    let (bytes, image) = image_bytes(ByteSize::mib(8), 4);
    stage(pool, image, &bytes).await?;
    succeeds("import_image", pool.import_image(image).await)?;
    let (root, data) = (volume_id("root"), volume_id("data"));
    let mut paths = Vec::new();
    for (requested, expected) in [(16, 16), (16, 16), (24, 24), (12, 24)] {
        let requested = ByteSize::mib(requested);
        let path = pool.ensure_volume(&root, image, requested).await;
        paths.push(path.map_err(failed("ensure_volume"))?);
        let size = size_of(pool, &root).await?;
        expect(
            size == Some(ByteSize::mib(expected)),
            "a volume grows and never shrinks",
            &(requested, size),
        )?;
    }
    let same = paths.iter().all(|path| paths.first() == Some(path));
    expect(same, "a volume keeps its path", &paths)?;
    let exact = pool.ensure_volume(&data, image, ByteSize::mib(8)).await;
    let exact = exact.map_err(failed("ensure_volume of the image's own size"))?;
    expect(
        paths.first() != Some(&exact),
        "two volumes have different paths",
        &exact,
    )?;

    let removed = pool.ensure_image_absent(image).await;
    let gone = removed.is_ok();
    let holds = gone != has(pool, image).await?;
    expect(
        holds,
        "an image is removed only if its volumes do not need it",
        &removed,
    )?;
    let size = size_of(pool, &root).await?;
    let holds = size == Some(ByteSize::mib(24));
    expect(
        holds,
        "a volume keeps its size when its image is removed",
        &size,
    )?;
    for id in [&root, &data, &root] {
        succeeds("ensure_volume_absent", pool.ensure_volume_absent(id).await)?;
    }
    let left = pool.volumes().await.map_err(failed("volumes"))?;
    expect(left.is_empty(), "removed volumes are not listed", &left)?;
    succeeds("ensure_image_absent", pool.ensure_image_absent(image).await)
}

async fn volumes_without_image_or_smaller_than_it_are_refused(
    pool: &dyn StoragePool,
) -> Result<(), Violation> {
    let (bytes, image) = image_bytes(ByteSize::mib(8), 5);
    let id = volume_id("root");
    let refused = pool.ensure_volume(&id, image, ByteSize::mib(8)).await;
    let holds = matches!(refused, Err(StorageError::NoImage(of)) if of == image);
    expect(holds, "a volume without its image is refused", &refused)?;
    stage(pool, image, &bytes).await?;
    succeeds("import_image", pool.import_image(image).await)?;
    let refused = pool.ensure_volume(&id, image, ByteSize::mib(7)).await;
    let holds = matches!(refused, Err(StorageError::TooSmall { size, minimum })
        if size == ByteSize::mib(7) && minimum == ByteSize::mib(8));
    expect(
        holds,
        "a volume smaller than its image is refused",
        &refused,
    )?;
    let left = pool.volumes().await.map_err(failed("volumes"))?;
    expect(left.is_empty(), "a refused volume leaves nothing", &left)?;
    succeeds("ensure_image_absent", pool.ensure_image_absent(image).await)
}

async fn absent_images_and_volumes_can_be_removed(pool: &dyn StoragePool) -> Result<(), Violation> {
    let (_, image) = image_bytes(ByteSize::mib(8), 6);
    succeeds("ensure_image_absent", pool.ensure_image_absent(image).await)?;
    let id = volume_id("root");
    succeeds("ensure_volume_absent", pool.ensure_volume_absent(&id).await)?;
    let refused = pool.import_image(image).await;
    expect(
        refused.is_err(),
        "an import without a staged file fails",
        &refused,
    )
}

/// A volume is read, and its bytes become a volume under another id, as on another node.
async fn volumes_are_sent_and_received(pool: &dyn StoragePool) -> Result<(), Violation> {
    let (bytes, image) = image_bytes(ByteSize::mib(8), 7);
    stage(pool, image, &bytes).await?;
    succeeds("import_image", pool.import_image(image).await)?;
    let (sent, received) = (volume_id("root"), volume_id("root"));
    let size = ByteSize::mib(16);
    let made = pool.ensure_volume(&sent, image, size).await;
    made.map_err(failed("ensure_volume"))?;
    let missing = pool.open_volume(&received).await;
    expect(missing.is_err(), "an absent volume cannot be read", &())?;
    let refused = pool.open_incoming(&sent).await;
    let holds = matches!(&refused, Err(StorageError::VolumeExists(id)) if *id == sent);
    expect(holds, "a volume that exists is not received", &())?;

    let from = pool.open_volume(&sent).await;
    let mut from = from.map_err(failed("open_volume"))?;
    let mut contents = Vec::new();
    from.read_to_end(&mut contents)
        .map_err(|error| Violation(format!("reading a volume: {error}")))?;
    let (first, rest) = contents.split_at(contents.len() / 2);
    for (half, before) in [(first, 0), (rest, first.len())] {
        // Opened again, as after an interruption: what was written before is still there.
        let to = pool.open_incoming(&received).await;
        let mut to = to.map_err(failed("open_incoming"))?;
        let kept = to.metadata().map(|metadata| metadata.len());
        let kept = kept.map_err(|error| Violation(format!("a received file: {error}")))?;
        let holds = kept == u64::try_from(before).unwrap_or(0);
        expect(holds, "a received part is kept", &(kept, before))?;
        to.seek(SeekFrom::End(0))
            .and_then(|_| to.write_all(half))
            .map_err(|error| Violation(format!("writing a received volume: {error}")))?;
        let listed = pool.incoming().await.map_err(failed("incoming"))?;
        expect(
            listed == [received.clone()],
            "a received part is listed",
            &listed,
        )?;
        let volumes = pool.volumes().await.map_err(failed("volumes"))?;
        let holds = volumes.iter().all(|volume| volume.id != received);
        expect(holds, "a received part is no volume", &volumes)?;
    }
    let volume = ReceivedVolume {
        image,
        format: pool.format(),
        largest: size,
    };
    for _ in 0..2 {
        let completed = pool.complete_incoming(&received, volume).await;
        succeeds("complete_incoming", completed)?;
        expect(
            size_of(pool, &received).await? == Some(size),
            "a received volume has the size of the sent one",
            &(),
        )?;
        let left = pool.incoming().await.map_err(failed("incoming"))?;
        expect(left.is_empty(), "a complete volume is not incoming", &left)?;
    }

    let canceled = volume_id("root");
    for remove in [true, false] {
        let opened = pool.open_incoming(&canceled).await;
        opened.map_err(failed("open_incoming"))?;
        if remove {
            let removed = pool.ensure_incoming_absent(&canceled).await;
            succeeds("ensure_incoming_absent", removed)?;
        } else {
            let removed = pool.ensure_volume_absent(&canceled).await;
            succeeds("ensure_volume_absent", removed)?;
        }
        let left = pool.incoming().await.map_err(failed("incoming"))?;
        expect(left.is_empty(), "a removed part is not listed", &left)?;
    }
    let nothing = pool.complete_incoming(&canceled, volume).await;
    expect(nothing.is_err(), "nothing does not become a volume", &())?;
    for id in [&sent, &received] {
        succeeds("ensure_volume_absent", pool.ensure_volume_absent(id).await)?;
    }
    succeeds("ensure_image_absent", pool.ensure_image_absent(image).await)
}

fn parse_name(name: &str) -> Name {
    name.parse().unwrap_or_else(|_| parse_name("invalid-name"))
}

fn succeeds(operation: &str, outcome: Result<(), StorageError>) -> Result<(), Violation> {
    outcome.map_err(failed(operation))
}

async fn has(pool: &dyn StoragePool, image: Digest) -> Result<bool, Violation> {
    pool.has_image(image).await.map_err(failed("has_image"))
}

async fn size_of(pool: &dyn StoragePool, id: &VolumeId) -> Result<Option<ByteSize>, Violation> {
    let volumes = pool.volumes().await.map_err(failed("volumes"))?;
    Ok(volumes
        .into_iter()
        .find(|v| v.id == *id)
        .and_then(|v| v.size))
}
