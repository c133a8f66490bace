//! Reads user-data from a file or standard input, and checks it as waifud does.

use std::io::Read;
use std::path::Path;

use waifud_types::Secret;
use waifud_types::spec::limits::USER_DATA_MAX;

use crate::failure::Failure;

/// The magic bytes of gzip (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Reads `path`; `-` is standard input. gzip, as produced by `cloud-init devel make-mime | gzip` and Terraform's
/// `cloudinit_config`, is decompressed.
pub fn read(path: &Path) -> Result<Secret<String>, Failure> {
    read_as(path, "--user-data")
}

/// Same as [`read`], with `field` as the field in errors.
pub fn read_as(path: &Path, field: &str) -> Result<Secret<String>, Failure> {
    let failure = |code, title: String| Failure::input(code, title).field(field);
    let unreadable = |e: std::io::Error| {
        failure(
            "user-data-unreadable",
            format!("cannot read user-data file {}", path.display()),
        )
        .cause(&e)
        .hint("check the path; - reads standard input")
    };
    let mut bytes = Vec::new();
    // One byte more than allowed is read to detect a file that is too large.
    if path == Path::new("-") {
        std::io::stdin()
            .take(USER_DATA_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
    } else {
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(USER_DATA_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
    }
    if bytes.len() as u64 > USER_DATA_MAX {
        return Err(failure(
            "user-data-too-large",
            "user-data exceeds the limit of 1 MiB".to_owned(),
        )
        .hint("let the guest fetch large files itself, for example in runcmd"));
    }
    if bytes.starts_with(&GZIP) {
        let text = waifud_cloudinit::unpack_user_data(&bytes).map_err(|error| {
            failure("user-data-invalid", format!("{}: {error}", path.display())).hint(error.hint())
        })?;
        return Ok(Secret::new(without_byte_order_mark(text)));
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(Secret::new(without_byte_order_mark(text))),
        _ => Err(failure(
            "user-data-binary",
            "user-data is not valid UTF-8".to_owned(),
        )
        .hint("use #cloud-config, a script or a MIME message, plain or compressed with gzip")),
    }
}

/// Validates user-data as waifud does, before it is sent.
pub fn check(text: &str) -> Result<(), Failure> {
    use waifud_cloudinit::UserDataError as E;
    let Err(error) = waifud_cloudinit::validate_user_data(text) else {
        return Ok(());
    };
    let code = match error {
        E::TooLong { .. } => "user-data-too-large",
        E::Binary { .. } => "user-data-binary",
        E::UnknownKind { .. } => "unsupported-user-data",
        _ => "user-data-invalid",
    };
    Err(Failure::input(code, error.to_string())
        .field("user_data")
        .hint(error.hint()))
}

/// Removes a byte order mark, which editors on Windows write and cloud-init does not expect.
fn without_byte_order_mark(text: String) -> String {
    match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result_of(bytes: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        match read(file.path()) {
            Ok(text) => text.into_inner(),
            Err(failure) => format!("{failure:?}"),
        }
    }

    #[test]
    fn gzip_is_unpacked_and_a_byte_order_mark_removed() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, b"\xef\xbb\xbf#cloud-config\n").unwrap();
        let packed = gzip.finish().unwrap();
        assert_eq!(result_of(&packed), "#cloud-config\n");
        assert_eq!(result_of(b"\xef\xbb\xbf#cloud-config\n"), "#cloud-config\n");
        assert!(result_of(&packed[..packed.len() - 4]).contains("gzip data is damaged"));
    }

    #[test]
    fn text_is_read_unchanged_and_binary_data_is_refused() {
        assert_eq!(result_of(b"#cloud-config\n{}\n"), "#cloud-config\n{}\n");
        assert!(result_of(b"\xff\xfe#\0").contains("user-data-binary"));
        assert!(result_of(b"\x1f\x8b\x08\0").contains("user-data-invalid"));
        assert!(result_of(&vec![b'a'; (1 << 20) + 1]).contains("user-data-too-large"));
        assert!(matches!(read(Path::new("/nonexistent")), Err(f) if f.exit_code() == 1));
    }
}
