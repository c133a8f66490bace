//! User-data in MIME messages. Each part is checked according to its type, and parts that cloud-init would ignore are
//! refused.

use mailparse::ParsedMail;

use super::content_type::{GZIP_TYPES, is_of_image, kind_of_type};
use super::encoded::unpack_user_data;
use super::error::UserDataError;
use super::kind::{UserDataKind, kind_of};
use super::{archive, single};

/// The maximum nesting of MIME messages.
const MAX_LEVELS: usize = 8;

/// Checks each part of a MIME message, except containers.
pub(super) fn check_message(text: &str) -> Result<(), UserDataError> {
    let message = mailparse::parse_mail(text.as_bytes())
        .map_err(|_| UserDataError::of_part("it is not a valid MIME message"))?;
    let mut walk = Walk::default();
    walk.leaves(&message, 0)?;
    if !walk.any {
        return Err(UserDataError::of_part(
            "no part of the MIME message contains text",
        ));
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
            return Err(UserDataError::of_part(
                "the nesting of MIME messages is too deep",
            ));
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
        let body = message.get_body_raw().map_err(|_| {
            UserDataError::of_part("its content does not match its Content-Transfer-Encoding")
        })?;
        let (text, of_type) = if GZIP_TYPES.contains(&of_type) {
            (unpack_user_data(&body)?, "text/plain")
        } else if let Ok(text) = String::from_utf8(body) {
            (text, of_type)
        } else if self.own_handler || is_of_image(of_type) {
            self.any = true;
            return Ok(());
        } else {
            return Err(UserDataError::of_part(
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

fn typed(of_type: &str, text: &str, own_handler: bool) -> Result<(), UserDataError> {
    if let Some(kind) = kind_of_type(of_type) {
        return check(kind, text);
    }
    match of_type {
        // The first line decides; otherwise cloud-init executes it.
        "text/x-shellscript" => match kind_of(text) {
            Ok(kind) if kind != UserDataKind::Mime => check(kind, text),
            _ => single::script(text, 1),
        },
        "text/plain" | "text/x-not-multipart" => {
            let kind = kind_of(text)?;
            if kind == UserDataKind::Mime {
                return Err(UserDataError::of_part(
                    "cloud-init does not recognize its first line",
                ));
            }
            check(kind, text)
        }
        _ if own_handler || is_of_image(of_type) => Ok(()),
        _ => Err(UserDataError::of_part(
            "cloud-init does not support its Content-Type and would ignore it",
        )),
    }
}

/// Checks a part of a known kind.
fn check(kind: UserDataKind, text: &str) -> Result<(), UserDataError> {
    match kind {
        UserDataKind::CloudConfigArchive => archive::check(text),
        kind => single::check(kind, text),
    }
}
