//! Checks a staged download before it is used: its digest, its header, and the result of `qemu-img`.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Deserialize;
use waifud_types::qcow2::{self, HEADER_BYTES, Qcow2Header};
use waifud_types::{ByteSize, Digest};

use crate::StorageError;
use crate::layout::{Layout, blocking};
use crate::tool::{STDIN, Tool};

/// A staged file that is the expected image.
pub struct Verified {
    pub(crate) file: File,
    pub(crate) header: Qcow2Header,
    pub(crate) image: Digest,
}

/// The exit code of `qemu-img check` for an intact image with leaked clusters, which waste space but are harmless.
const LEAKS_ONLY: i32 = 3;

/// The fields of `qemu-img info --output=json` that are checked.
#[derive(Deserialize)]
struct Info {
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    #[serde(rename = "backing-filename")]
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
}

/// Opens and checks the staged file, and returns it. The caller removes the file if the check fails
/// because of the image.
pub(crate) async fn checked(
    layout: &Layout,
    tool: &Tool,
    image: Digest,
) -> Result<Verified, StorageError> {
    let staged = layout.staged(image);
    let (file, header) = {
        let (layout, staged) = (layout.clone(), staged.clone());
        blocking(move || verify(&layout, &staged, image)).await?
    };
    inspect(tool, &file, &staged, &header).await?;
    Ok(Verified {
        file,
        header,
        image,
    })
}

fn verify(
    layout: &Layout,
    staged: &Path,
    image: Digest,
) -> Result<(File, Qcow2Header), StorageError> {
    let failed = |error| layout.io("read", staged, error);
    let mut file = layout.open_regular(staged)?;
    let (_, hash) = waifud_kit::sha256::of_reader(&file).map_err(failed)?;
    let actual = Digest::from_bytes(hash);
    if actual != image {
        return Err(StorageError::DigestMismatch {
            expected: image,
            actual,
        });
    }
    let mut head = Vec::with_capacity(HEADER_BYTES);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let limit = u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX);
    (&file).take(limit).read_to_end(&mut head).map_err(failed)?;
    let header = qcow2::parse(&head).map_err(StorageError::BadImage)?;
    // Readable for the image tools' user, who receives the descriptor; only the owner can enter the directory.
    file.set_permissions(Permissions::from_mode(0o444))
        .map_err(failed)?;
    Ok((file, header))
}

async fn inspect(
    tool: &Tool,
    file: &File,
    staged: &Path,
    header: &Qcow2Header,
) -> Result<(), StorageError> {
    let refused = |message: String| StorageError::ImageRefused {
        tool: "qemu-img",
        message,
    };
    let handle = || {
        file.try_clone().map_err(|source| StorageError::Io {
            operation: "open",
            path: staged.to_owned(),
            source,
        })
    };

    let output = tool.run(&arguments("info"), Some(handle()?)).await?;
    if output.code != Some(0) {
        return Err(refused(output.error_message()));
    }
    let info: Info = serde_json::from_slice(&output.stdout)
        .map_err(|error| refused(format!("cannot parse its report: {error}")))?;
    if ByteSize(info.virtual_size) != header.virtual_size {
        return Err(refused(
            "it reports another virtual size than the image's header".to_owned(),
        ));
    }
    if info.backing_filename.is_some() || info.encrypted {
        return Err(refused(
            "it reports a backing file or encryption".to_owned(),
        ));
    }

    let output = tool.run(&arguments("check"), Some(handle()?)).await?;
    match output.code {
        Some(0 | LEAKS_ONLY) => Ok(()),
        _ => Err(refused(output.error_message())),
    }
}

fn arguments(verb: &str) -> [&OsStr; 5] {
    [verb, "-f", "qcow2", "--output=json", STDIN].map(OsStr::new)
}
