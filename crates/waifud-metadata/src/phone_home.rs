//! The phone-home report of a guest: a form (`application/x-www-form-urlencoded`). Its contents are untrusted and made safe
//! for terminals.

use waifud_api::metadatad::Observed;
use waifud_kit::terminal::is_unsafe;

/// How many characters of an instance-id or host name are kept: the maximum of DNS (RFC 1035, section 2.3.4).
const TEXT_MAX: usize = 255;
/// How many characters of a host key are kept: an RSA key of 16,384 bits has 2.8 KiB.
const KEY_MAX: usize = 4 << 10;
/// How many host keys are kept; OpenSSH has five types.
const KEYS_MAX: usize = 8;
/// What cloud-init sends for missing values.
const NOT_THERE: &str = "N/A";

/// Reads the form.
pub(crate) fn parse(body: &[u8]) -> Observed {
    let (mut instance_id, mut hostname, mut host_keys) = (None, None, Vec::new());
    for (name, value) in form_urlencoded::parse(body) {
        if value == NOT_THERE || value.is_empty() {
            continue;
        }
        match name.as_ref() {
            "instance_id" => instance_id = Some(harmless(&value, TEXT_MAX)),
            "hostname" => hostname = Some(harmless(&value, TEXT_MAX)),
            key if key.starts_with("pub_key_") && host_keys.len() < KEYS_MAX => {
                host_keys.push(harmless(&value, KEY_MAX));
            }
            _ => {}
        }
    }
    Observed::PhoneHome {
        instance_id,
        hostname,
        host_keys,
    }
}

/// Text of a guest, for logs and terminals: printable characters only, with a limited length.
pub(crate) fn harmless(text: &str, most: usize) -> String {
    text.trim()
        .chars()
        .take(most)
        .map(|c| if is_unsafe(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_form_of_cloud_init_is_read() {
        let body = b"instance_id=i-1&hostname=web&pub_key_ed25519=ssh-ed25519+AAAA%2B%2F+root%40web%0A&pub_key_rsa=N%2FA&x=y";
        let Observed::PhoneHome {
            instance_id,
            hostname,
            host_keys,
        } = parse(body)
        else {
            panic!("not a report");
        };
        assert_eq!(instance_id.as_deref(), Some("i-1"));
        assert_eq!(hostname.as_deref(), Some("web"));
        assert_eq!(host_keys, ["ssh-ed25519 AAAA+/ root@web"]);
    }

    #[test]
    fn direction_marks_and_invisible_characters_are_replaced() {
        let text = harmless("web\u{202e}gnp.\u{200b}x\u{2028}y", TEXT_MAX);
        assert_eq!(text, "web\u{fffd}gnp.\u{fffd}x\u{fffd}y");
        assert_eq!(harmless("Grün 日本", TEXT_MAX), "Grün 日本");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_bounded_printable_text(body in prop::collection::vec(any::<u8>(), 0..2000)) {
            let Observed::PhoneHome { instance_id, hostname, host_keys } = parse(&body) else {
                panic!("not a report");
            };
            for text in instance_id.iter().chain(&hostname).chain(&host_keys) {
                prop_assert!(text.chars().count() <= KEY_MAX);
                prop_assert!(!text.chars().any(char::is_control));
            }
        }
    }
}
