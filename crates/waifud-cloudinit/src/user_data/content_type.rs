//! The MIME types of parts that cloud-init supports.

use super::kind::UserDataKind;

/// The types in `DECOMP_TYPES` of `cloudinit/user_data.py`.
pub(super) const GZIP_TYPES: [&str; 8] = [
    "application/gzip",
    "application/gzip-compressed",
    "application/gzipped",
    "application/x-compress",
    "application/x-compressed",
    "application/x-gunzip",
    "application/x-gzip",
    "application/x-gzip-compressed",
];

/// The kind of a part with this type; `None` if its first line decides, or if cloud-init does not support the type.
pub(super) fn kind_of_type(of_type: &str) -> Option<UserDataKind> {
    Some(match of_type {
        "text/cloud-config" => UserDataKind::CloudConfig,
        "text/cloud-config-archive" => UserDataKind::CloudConfigArchive,
        "text/cloud-config-jsonp" => UserDataKind::CloudConfigPatch,
        "text/x-include-url" | "text/x-include-once-url" => UserDataKind::Include,
        "text/cloud-boothook" => UserDataKind::Boothook,
        "text/part-handler" => UserDataKind::PartHandler,
        "text/jinja2" => UserDataKind::Jinja,
        "text/x-shellscript-per-boot"
        | "text/x-shellscript-per-instance"
        | "text/x-shellscript-per-once" => UserDataKind::Script,
        _ => return None,
    })
}

/// Whether the part may be for a handler of the image (`/var/lib/cloud/handlers`): all of cloud-init's own handlers are for
/// text types.
pub(super) fn is_of_image(of_type: &str) -> bool {
    !of_type.starts_with("text/")
}
