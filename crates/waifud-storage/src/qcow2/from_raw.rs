//! Converts a received raw volume to an overlay on its image, which contains only what differs from the image.
//!
//! The new volume begins as an empty overlay on the received file. `qemu-img rebase` then compares that file with the image, copies
//! what differs, and makes the image the backing file. Only the raw file comes from another node, and no tool looks for a
//! format in it.

use std::ffi::OsStr;
use std::os::unix::fs::fchown;
use std::path::Path;

use waifud_types::{ByteSize, VolumeId};

use super::{check_header, image_size, overlay};
use crate::layout::{Layout, blocking};
use crate::tool::Tool;
use crate::{ReceivedVolume, StorageError, check_size};

/// Writes the unfinished volume; durable on return.
pub(super) async fn convert(
    tool: &Tool,
    layout: &Layout,
    id: &VolumeId,
    received: ReceivedVolume,
) -> Result<(), StorageError> {
    let size = {
        let (layout, id) = (layout.clone(), id.clone());
        blocking(move || begin(&layout, &id, received)).await?
    };
    let unfinished = layout.unfinished_volume(id);
    let image = overlay::backing_name(received.image);
    let arguments = ["rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b"].map(OsStr::new);
    let arguments = [&arguments[..], &[image.as_os_str(), unfinished.as_os_str()]].concat();
    let output = tool.for_volume(size).run(&arguments, None).await?;
    output.success(layout)?;
    let (layout, id) = (layout.clone(), id.clone());
    blocking(move || {
        let file = layout.open_regular(&unfinished)?;
        file.sync_all()
            .map_err(|error| layout.io("sync", &unfinished, error))?;
        check_header(&layout, &unfinished, &id, received.image).map(drop)
    })
    .await
}

/// Writes an overlay on the received file. Returns the size of the volume.
fn begin(
    layout: &Layout,
    id: &VolumeId,
    received: ReceivedVolume,
) -> Result<ByteSize, StorageError> {
    let incoming = layout.incoming(id);
    let file = layout.open_regular(&incoming)?;
    let own = || {
        if let Some((uid, gid)) = layout.owner {
            // The tool runs as the owner of volumes.
            fchown(&file, Some(uid), Some(gid))?;
        }
        file.metadata()
    };
    let metadata = own().map_err(|error| layout.io("prepare", &incoming, error))?;
    let size = ByteSize(metadata.len());
    check_size(size, image_size(layout, received.image)?)?;
    let name = Layout::incoming_name(id);
    let bytes =
        overlay::on_raw_file(size, Path::new(&name)).map_err(|error| StorageError::Tool {
            tool: "the qcow2 writer",
            message: error.to_string(),
        })?;
    layout.write_unfinished_volume(id, &bytes)?;
    Ok(size)
}
