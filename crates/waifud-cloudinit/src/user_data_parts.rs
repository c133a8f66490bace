//! User-data of several parts: MIME messages and `#cloud-config-archive`. Each part is checked according to its type, and
//! parts that cloud-init would ignore are refused.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailparse::ParsedMail;
use waifud_types::spec::limits::USER_DATA_MAX;

use crate::user_data::{self, UserDataKind, kind_of};
use crate::yaml::{self, Document, Node};
use crate::{UserDataError, user_data_kinds as kinds};

/// The maximum nesting of MIME messages.
const MAX_LEVELS: usize = 8;

/// The types in `DECOMP_TYPES` of `cloudinit/user_data.py`.
const GZIP_TYPES: [&str; 8] = [
    "application/gzip",
    "application/gzip-compressed",
    "application/gzipped",
    "application/x-compress",
    "application/x-compressed",
    "application/x-gunzip",
    "application/x-gzip",
    "application/x-gzip-compressed",
];

fn not_used(reason: &'static str) -> UserDataError {
    UserDataError::NotUsed { line: 1, reason }
}

/// What a base64 text encodes, if cloud-init could use it once decoded.
pub(crate) fn in_base64(text: &str) -> Option<&'static str> {
    let packed: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(packed).ok()?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Some("gzip");
    }
    let text = String::from_utf8(bytes).ok()?;
    matches!(kind_of(&text), Ok(kind) if kind != UserDataKind::Empty).then_some("user-data")
}

/// Decompresses user-data, for example from `make-mime | gzip` or Terraform's `cloudinit_config`.
///
/// # Errors
/// The data is damaged, not UTF-8, or more than 1 MiB once decompressed. No more than that is decompressed.
pub fn unpack_user_data(bytes: &[u8]) -> Result<String, UserDataError> {
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(USER_DATA_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|_| not_used("its gzip data is damaged"))?;
    let found = text.len() as u64;
    if found > USER_DATA_MAX {
        return Err(UserDataError::TooLong { found });
    }
    String::from_utf8(text).map_err(|_| not_used("its gzip data does not hold UTF-8 text"))
}

/// Checks each part of a MIME message, except containers.
pub(crate) fn mime(text: &str) -> Result<(), UserDataError> {
    let message = mailparse::parse_mail(text.as_bytes())
        .map_err(|_| not_used("it is not a valid MIME message"))?;
    let mut walk = Walk::default();
    walk.leaves(&message, 0)?;
    if !walk.any {
        return Err(not_used("no part of the MIME message contains text"));
    }
    Ok(())
}

#[derive(Default)]
struct Walk {
    /// The number of parts so far.
    number: usize,
    /// Whether a part has text.
    any: bool,
    /// Whether a part is a handler for further types.
    own_handler: bool,
}

impl Walk {
    fn leaves(&mut self, message: &ParsedMail, level: usize) -> Result<(), UserDataError> {
        if level > MAX_LEVELS {
            return Err(not_used("the nesting of MIME messages is too deep"));
        }
        let of_type = message.ctype.mimetype.as_str();
        if of_type.starts_with("multipart/") {
            return message
                .subparts
                .iter()
                .try_for_each(|part| self.leaves(part, level + 1));
        }
        self.number += 1;
        let number = self.number;
        self.leaf(message, of_type)
            .map_err(|error| UserDataError::Part {
                number,
                error: Box::new(error),
            })
    }

    fn leaf(&mut self, message: &ParsedMail, of_type: &str) -> Result<(), UserDataError> {
        let body = message
            .get_body_raw()
            .map_err(|_| not_used("its content does not match its Content-Transfer-Encoding"))?;
        let (text, of_type) = if GZIP_TYPES.contains(&of_type) {
            (unpack_user_data(&body)?, "text/plain")
        } else if let Ok(text) = String::from_utf8(body) {
            (text, of_type)
        } else if self.own_handler || is_of_image(of_type) {
            self.any = true;
            return Ok(());
        } else {
            return Err(not_used(
                "its Content-Type is a text type, but its content is binary",
            ));
        };
        if text.trim().is_empty() {
            return Ok(());
        }
        self.any = true;
        self.own_handler |= kind_of_type(of_type) == Some(UserDataKind::PartHandler);
        typed(of_type, &text, self.own_handler)
    }
}

/// The kind of a part with this type; `None` if its first line decides, or if cloud-init does not support the type.
fn kind_of_type(of_type: &str) -> Option<UserDataKind> {
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
fn is_of_image(of_type: &str) -> bool {
    !of_type.starts_with("text/")
}

fn typed(of_type: &str, text: &str, own_handler: bool) -> Result<(), UserDataError> {
    if let Some(kind) = kind_of_type(of_type) {
        return user_data::check(kind, text);
    }
    match of_type {
        // The first line decides; otherwise cloud-init executes it.
        "text/x-shellscript" => match kind_of(text) {
            Ok(kind) if kind != UserDataKind::Mime => user_data::check(kind, text),
            _ => kinds::script(text, 1),
        },
        "text/plain" | "text/x-not-multipart" => {
            let kind = kind_of(text)?;
            if kind == UserDataKind::Mime {
                return Err(not_used("cloud-init does not recognise its first line"));
            }
            user_data::check(kind, text)
        }
        _ if own_handler || is_of_image(of_type) => Ok(()),
        _ => Err(not_used(
            "cloud-init does not support its Content-Type and would ignore it",
        )),
    }
}

/// Checks a `#cloud-config-archive`: a YAML list of strings, or of mappings with `content` and `type`.
pub(crate) fn archive(text: &str) -> Result<(), UserDataError> {
    let document = yaml::load(text)?;
    let Some(root) = document.root().filter(|root| !root.is("null")) else {
        return Ok(());
    };
    if !root.is("seq") {
        return Err(UserDataError::WrongShape { wanted: "a list" });
    }
    for (index, item) in document.items(root).enumerate() {
        entry(&document, item).map_err(|error| UserDataError::Part {
            number: index + 1,
            error: Box::new(error),
        })?;
    }
    Ok(())
}

/// Checks one entry of an archive.
fn entry(document: &Document, item: &Node) -> Result<(), UserDataError> {
    if item.is("str") {
        return of_archive(None, item.text().unwrap_or(""));
    }
    if !item.is("map") {
        return Err(not_used(
            "an entry must be a string or a mapping with content",
        ));
    }
    let of_type = match document.get(item, "type") {
        Some(node) if node.is("str") => node.text().filter(|text| !text.is_empty()),
        Some(node) if !node.is("null") => return Err(not_used("type must be a string")),
        _ => None,
    };
    if of_type.is_some_and(|of_type| !of_type.contains('/')) {
        return Err(not_used(
            "type must be a MIME type, for example text/cloud-config",
        ));
    }
    match document.get(item, "content") {
        None => Ok(()),
        Some(node) if node.is("str") => of_archive(of_type, node.text().unwrap_or("")),
        // Binary data is for a handler of the guest.
        Some(node) if node.is("binary") => Ok(()),
        Some(_) => Err(not_used("content must be a string")),
    }
}

/// Checks the content of an archive's entry. cloud-init does not expand entries: it ignores includes and archives there.
fn of_archive(of_type: Option<&str>, text: &str) -> Result<(), UserDataError> {
    if text.is_empty() {
        return Ok(());
    }
    let kind = match of_type {
        Some("text/x-shellscript") => Some(UserDataKind::Script),
        Some(of_type) => kind_of_type(of_type),
        None => match kind_of(text) {
            Ok(UserDataKind::Mime | UserDataKind::Empty) | Err(_) => {
                Some(UserDataKind::CloudConfig)
            }
            Ok(kind) => Some(kind),
        },
    };
    match kind {
        Some(UserDataKind::Include | UserDataKind::CloudConfigArchive) => Err(not_used(
            "cloud-init ignores #include and archives inside an archive; use MIME",
        )),
        Some(kind) => user_data::check(kind, text),
        None if of_type.is_some_and(is_of_image) => Ok(()),
        None => Err(not_used(
            "cloud-init does not support its type and would ignore it",
        )),
    }
}
