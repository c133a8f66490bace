//! Public keys: real ones are accepted, everything else is refused without printing it.

use waifud_cloudinit::{SshKey, SshKeyError};

const ED25519: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKmyhTZV4GUq9h7+A5C+gyHjT/lSd7pD0QFiNCU6rC5r";

fn error(text: &str) -> SshKeyError {
    text.parse::<SshKey>().unwrap_err()
}

#[test]
fn every_type_that_openssh_creates_is_accepted() {
    for line in include_str!("keys.pub").lines() {
        let key: SshKey = format!("  {line}\n").parse().unwrap();
        assert_eq!(key.as_str(), line);
    }
    ED25519.parse::<SshKey>().unwrap();
}

#[test]
fn a_private_key_is_refused_by_name_and_not_shown() {
    let text =
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n";
    assert_eq!(error(text), SshKeyError::Private);
    assert!(!error(text).to_string().contains("b3Bl"));
    assert_eq!(
        error("-----BEGIN RSA PRIVATE KEY-----"),
        SshKeyError::Private
    );
    assert_eq!(
        error("PuTTY-User-Key-File-3: ssh-ed25519"),
        SshKeyError::Private
    );
}

#[test]
fn invalid_keys_are_refused_with_a_reason() {
    assert_eq!(error(""), SshKeyError::Empty);
    assert_eq!(error("hello"), SshKeyError::UnknownType);
    assert_eq!(
        error("ssh-dss AAAAB3NzaC1kc3MAAACBAA=="),
        SshKeyError::UnknownType
    );
    assert_eq!(error("no-pty ssh-ed25519 AAAA"), SshKeyError::UnknownType);
    assert_eq!(error("ssh-ed25519"), SshKeyError::Damaged);
    assert_eq!(error("ssh-ed25519 !!!"), SshKeyError::Damaged);
    assert_eq!(error(&ED25519[..ED25519.len() - 4]), SshKeyError::Damaged);
    assert_eq!(
        error(&ED25519.replace("ssh-ed25519 ", "ssh-rsa ")),
        SshKeyError::TypesDiffer
    );
    assert_eq!(
        error(&format!("{ED25519}\n{ED25519}")),
        SshKeyError::NotOneLine
    );
    assert_eq!(
        error(&format!("{ED25519} {}", "x".repeat(9000))),
        SshKeyError::TooLong
    );
}
