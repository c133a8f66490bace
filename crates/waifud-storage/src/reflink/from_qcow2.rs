//! Converts a received qcow2 volume to a clone of its image with the changes of the guest.
//!
//! The new volume begins as a clone of the image, or as an empty file if the received volume is standalone. `qemu-img commit` then
//! writes what the received file contains to it. So the volume shares the image's blocks, as one that was created here.
//!
//! The guest's QEMU on the other node could write anything to the file. So its header is checked first, and the tool runs as it does for
//! images: as another user, without network, with two open files. The backing file in the header is not used.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, fchown};

use nix::unistd::geteuid;
use waifud_types::{ByteSize, VolumeId};

use super::clone_file;
use crate::layout::{Layout, blocking, create_file};
use crate::qcow2::overlay::{self, Overlay};
use crate::tool::{STDIN, STDOUT, Tool};
use crate::{ReceivedVolume, StorageError, check_size};

/// The files that the tool works with.
struct Files {
    received: File,
    volume: File,
    size: ByteSize,
}

/// Writes the unfinished volume; durable on return.
pub(super) async fn convert(
    tool: &Tool,
    layout: &Layout,
    id: &VolumeId,
    received: ReceivedVolume,
) -> Result<(), StorageError> {
    let user = tool.user.filter(|_| geteuid().is_root());
    let Files {
        received,
        volume,
        size,
    } = {
        let (layout, id) = (layout.clone(), id.clone());
        blocking(move || begin(&layout, &id, received, user)).await?
    };
    let unfinished = layout.unfinished_volume(id);
    let length = received.metadata();
    let length = length.map_err(|error| layout.io("read", &layout.incoming(id), error))?;
    let handle = volume.try_clone();
    let handle = handle.map_err(|error| layout.io("open", &unfinished, error))?;
    let chain = format!(
        r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{STDIN}"}},"backing":{{"driver":"raw","file":{{"driver":"file","filename":"{STDOUT}"}}}}}}"#
    );
    // `-d`: the received file is not emptied, so that this can be repeated.
    let arguments = ["commit", "-q", "-d", &chain].map(OsStr::new);
    let tool = Tool {
        write_limit: size.bytes().max(length.len()),
        ..tool.for_volume(size)
    };
    let output = tool.run_into(&arguments, received, handle).await?;
    output.success(layout)?;
    let layout = layout.clone();
    blocking(move || {
        let finish = || {
            let (uid, gid) = layout.owner.unwrap_or((0, 0));
            if user.is_some() {
                fchown(&volume, Some(uid), Some(gid))?;
            }
            volume.set_permissions(Permissions::from_mode(0o600))?;
            volume.sync_all()?;
            if volume.metadata()?.len() == size.bytes() {
                Ok(())
            } else {
                Err(io::Error::other("it has another size than before"))
            }
        };
        finish().map_err(|error| layout.io("finish", &unfinished, error))
    })
    .await
}

/// Checks the received file, and creates what its contents are written to.
fn begin(
    layout: &Layout,
    id: &VolumeId,
    received: ReceivedVolume,
    user: Option<(u32, u32)>,
) -> Result<Files, StorageError> {
    let header = header(layout, id, received)?;
    let image = layout.existing_image(received.image)?;
    let image = layout.open_regular(&image)?;
    let unfinished = layout.unfinished_volume(id);
    let failed = |error| layout.io("write", &unfinished, error);
    let minimum = image.metadata().map_err(failed)?.len();
    check_size(header.size, ByteSize(minimum))?;
    let file = layout.open_incoming(id)?;
    let create = || {
        let volume = create_file(&unfinished)?;
        if !header.standalone {
            clone_file(&image, &volume)?;
        }
        volume.set_len(header.size.bytes())?;
        if let Some((uid, gid)) = user {
            // The tool opens both files again through their descriptors.
            fchown(&volume, Some(uid), Some(gid))?;
            fchown(&file, Some(uid), Some(gid))?;
        }
        Ok(volume)
    };
    Ok(Files {
        volume: create().map_err(failed)?,
        received: file,
        size: header.size,
    })
}

/// The header of the received file, if its contents can be used.
fn header(
    layout: &Layout,
    id: &VolumeId,
    received: ReceivedVolume,
) -> Result<Overlay, StorageError> {
    let path = layout.incoming(id);
    let invalid = |message: &str| layout.io("use", &path, io::Error::other(message));
    let head = layout.head(&path, overlay::HEAD)?;
    let header = overlay::parse(&head).ok_or_else(|| invalid("it is not a qcow2 file"))?;
    if header.foreign {
        let message = "it is encrypted, or has its data in another file";
        return Err(invalid(message));
    }
    if !header.standalone && header.image != Some(received.image) {
        return Err(StorageError::OtherImage {
            volume: id.clone(),
            image: received.image,
        });
    }
    if header.size > received.largest {
        return Err(StorageError::TooLarge {
            volume: id.clone(),
            size: header.size,
            largest: received.largest,
        });
    }
    Ok(header)
}
