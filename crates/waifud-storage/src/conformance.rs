//! What every pool must do, fake or real: one suite that all of them pass.
//!
//! Broken rules come back as `Violation`; the caller unwraps it in a test.

use std::fmt::Debug;
use std::path::PathBuf;

use waifud_types::{ByteSize, Digest, InstanceId, Name, VolumeId};

use crate::fake::image_bytes;
use crate::{StorageError, StoragePool};

/// A rule that the pool broke, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// The id of a disk of an instance made up on the spot.
pub fn volume_id(disk: &str) -> VolumeId {
    VolumeId {
        instance: InstanceId::generate(),
        disk: label(disk),
    }
}

/// Runs the whole suite on an empty pool. What it makes is gone afterwards unless a rule is broken.
pub async fn everything(pool: &dyn StoragePool) -> Result<(), Violation> {
    images_are_imported_once_and_verified(pool).await?;
    hostile_images_leave_nothing_behind(pool).await?;
    volumes_are_cloned_grown_and_never_shrunk(pool).await?;
    volumes_refuse_what_can_not_be(pool).await?;
    absent_things_are_no_error(pool).await?;
    let usage = pool.usage().await.map_err(failed("usage"))?;
    let right = usage.used <= usage.size && usage.size.bytes() > 0 && usage.health == "ok";
    expect(right, "usage makes sense", &usage)
}

/// Stages bytes as a download would.
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

async fn images_are_imported_once_and_verified(pool: &dyn StoragePool) -> Result<(), Violation> {
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    expect(!has(pool, image).await?, "an empty pool has no image", &())?;
    let staged = stage(pool, image, &bytes).await?;
    expect(!has(pool, image).await?, "a staged image is none yet", &())?;
    done("import_image", pool.import_image(image).await)?;
    expect(has(pool, image).await?, "an imported image is there", &())?;
    let listed = pool.images().await.map_err(failed("images"))?;
    expect(listed == [image], "an imported image is listed", &listed)?;
    expect(!staged.exists(), "the staged file is gone", &staged)?;

    let staged = stage(pool, image, &bytes).await?;
    done("a second import_image", pool.import_image(image).await)?;
    expect(!staged.exists(), "the staged file is gone", &staged)?;
    done(
        "import_image without a staged file",
        pool.import_image(image).await,
    )?;
    for _ in 0..2 {
        done("ensure_image_absent", pool.ensure_image_absent(image).await)?;
    }
    let listed = pool.images().await.map_err(failed("images"))?;
    expect(
        listed.is_empty(),
        "a forgotten image is not listed",
        &listed,
    )?;
    expect(!has(pool, image).await?, "a forgotten image is gone", &())
}

async fn hostile_images_leave_nothing_behind(pool: &dyn StoragePool) -> Result<(), Violation> {
    let (honest, _) = image_bytes(ByteSize::mib(8), 2);
    let twisted = |at: usize, value: u8| {
        let mut bytes = honest.clone();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes
    };
    // Offsets of header fields: qcow2.txt, "Header".
    let hostile: [(&str, Vec<u8>); 6] = [
        ("no image at all", b"\x89PNG\r\n\x1a\n".to_vec()),
        ("an empty file", Vec::new()),
        (
            "a file that ends within its header",
            honest.get(..40).unwrap_or_default().to_vec(),
        ),
        ("a backing file", twisted(15, 200)),
        ("an external data file", twisted(79, 4)),
        ("an absurd size", twisted(24, 0x7f)),
    ];
    for (what, bytes) in hostile {
        let image = Digest::of(&bytes);
        let staged = stage(pool, image, &bytes).await?;
        let refused = pool.import_image(image).await;
        let right = matches!(refused, Err(StorageError::BadImage(_)));
        expect(right, &format!("{what} is refused"), &refused)?;
        expect(
            !staged.exists(),
            &format!("{what}: its staged file is gone"),
            &staged,
        )?;
        expect(
            !has(pool, image).await?,
            &format!("{what} is no image"),
            &image,
        )?;
    }

    let (_, other) = image_bytes(ByteSize::mib(8), 3);
    let staged = stage(pool, other, &honest).await?;
    let refused = pool.import_image(other).await;
    let right = matches!(&refused, Err(StorageError::DigestMismatch { expected, actual })
        if *expected == other && *actual == Digest::of(&honest));
    expect(right, "bytes of another digest are refused", &refused)?;
    expect(!staged.exists(), "their staged file is gone", &staged)?;
    expect(!has(pool, other).await?, "they are no image", &other)
}

async fn volumes_are_cloned_grown_and_never_shrunk(
    pool: &dyn StoragePool,
) -> Result<(), Violation> {
    let (bytes, image) = image_bytes(ByteSize::mib(8), 4);
    stage(pool, image, &bytes).await?;
    done("import_image", pool.import_image(image).await)?;
    let (root, data) = (volume_id("root"), volume_id("data"));
    let mut paths = Vec::new();
    for mib in [16, 16, 24, 12] {
        let path = pool.ensure_volume(&root, image, ByteSize::mib(mib)).await;
        paths.push(path.map_err(failed("ensure_volume"))?);
        let grown = ByteSize::mib(mib.max(if mib == 12 { 24 } else { 0 }));
        let size = size_of(pool, &root).await?;
        expect(
            size == Some(grown),
            "a volume grows and never shrinks",
            &(mib, size),
        )?;
    }
    let same = paths.iter().all(|path| paths.first() == Some(path));
    expect(same, "a volume keeps its path", &paths)?;
    let exact = pool.ensure_volume(&data, image, ByteSize::mib(8)).await;
    let exact = exact.map_err(failed("ensure_volume of the image's own size"))?;
    expect(
        paths.first() != Some(&exact),
        "two volumes, two paths",
        &exact,
    )?;

    let forgotten = pool.ensure_image_absent(image).await;
    let gone = forgotten.is_ok();
    let right = gone != has(pool, image).await?;
    expect(
        right,
        "an image stays, or volumes do not need it",
        &forgotten,
    )?;
    let size = size_of(pool, &root).await?;
    let right = size == Some(ByteSize::mib(24));
    expect(right, "a volume stays as it was", &size)?;
    for id in [&root, &data, &root] {
        done("ensure_volume_absent", pool.ensure_volume_absent(id).await)?;
    }
    let left = pool.volumes().await.map_err(failed("volumes"))?;
    expect(left.is_empty(), "no volume is left", &left)?;
    done("ensure_image_absent", pool.ensure_image_absent(image).await)
}

async fn volumes_refuse_what_can_not_be(pool: &dyn StoragePool) -> Result<(), Violation> {
    let (bytes, image) = image_bytes(ByteSize::mib(8), 5);
    let id = volume_id("root");
    let refused = pool.ensure_volume(&id, image, ByteSize::mib(8)).await;
    let right = matches!(refused, Err(StorageError::NoImage(of)) if of == image);
    expect(right, "no volume without its image", &refused)?;
    stage(pool, image, &bytes).await?;
    done("import_image", pool.import_image(image).await)?;
    let refused = pool.ensure_volume(&id, image, ByteSize::mib(7)).await;
    let right = matches!(refused, Err(StorageError::TooSmall { size, minimum })
        if size == ByteSize::mib(7) && minimum == ByteSize::mib(8));
    expect(right, "no volume smaller than its image", &refused)?;
    let left = pool.volumes().await.map_err(failed("volumes"))?;
    expect(left.is_empty(), "a refused volume leaves nothing", &left)?;
    done("ensure_image_absent", pool.ensure_image_absent(image).await)
}

async fn absent_things_are_no_error(pool: &dyn StoragePool) -> Result<(), Violation> {
    let (_, image) = image_bytes(ByteSize::mib(8), 6);
    done("ensure_image_absent", pool.ensure_image_absent(image).await)?;
    let id = volume_id("root");
    done("ensure_volume_absent", pool.ensure_volume_absent(&id).await)?;
    let nothing = pool.import_image(image).await;
    expect(
        nothing.is_err(),
        "nothing staged, nothing imported",
        &nothing,
    )
}

fn label(name: &str) -> Name {
    name.parse().unwrap_or_else(|_| label("misnamed"))
}

fn expect(right: bool, rule: &str, seen: &dyn Debug) -> Result<(), Violation> {
    if right {
        Ok(())
    } else {
        Err(Violation(format!("{rule}: {seen:?}")))
    }
}

fn failed(what: &str) -> impl FnOnce(StorageError) -> Violation {
    move |error| Violation(format!("{what} failed: {error:?}"))
}

fn done(what: &str, outcome: Result<(), StorageError>) -> Result<(), Violation> {
    outcome.map_err(failed(what))
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
