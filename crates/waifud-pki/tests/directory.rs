//! The CA's directory: created once, private, never replaced; waifud's certificate is renewed when its names change.

use std::os::unix::fs::PermissionsExt;

use waifud_pki::{Authority, PkiError};

#[test]
fn the_ca_is_created_once_and_its_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let first = Authority::open(dir.path()).unwrap().fingerprint();
    assert_eq!(Authority::open(dir.path()).unwrap().fingerprint(), first);
    let mode = |name: &str| {
        let file = std::fs::metadata(dir.path().join(name)).unwrap();
        file.permissions().mode() & 0o777
    };
    assert_eq!((mode("ca.key"), mode("ca.crt")), (0o600, 0o644));
    let public = std::fs::read_to_string(Authority::public_file(dir.path())).unwrap();
    assert!(!public.contains("PRIVATE"));
    // The public file is created again.
    std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
    Authority::open(dir.path()).unwrap();
    assert_eq!(
        std::fs::read_to_string(dir.path().join("ca.crt")).unwrap(),
        public
    );
}

#[test]
fn a_damaged_ca_is_an_error_that_names_the_file_and_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    Authority::open(dir.path()).unwrap();
    let path = dir.path().join("ca.key");
    let text = std::fs::read_to_string(&path).unwrap();
    let other = tempfile::tempdir().unwrap();
    Authority::open(other.path()).unwrap();
    let others = std::fs::read_to_string(other.path().join("ca.key")).unwrap();
    let key_end = text.find("-----BEGIN CERT").unwrap();
    let others_key = &others[..others.find("-----BEGIN CERT").unwrap()];
    for broken in [
        String::new(),
        text[..key_end].to_owned(),
        text[key_end..].to_owned(),
        format!("{others_key}{}", &text[key_end..]),
    ] {
        std::fs::write(&path, &broken).unwrap();
        let error = Authority::open(dir.path()).unwrap_err();
        assert!(matches!(error, PkiError::BadFile { .. }), "{error:?}");
        assert!(error.to_string().contains("ca.key"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), broken);
    }
}

#[test]
fn waifuds_certificate_is_kept_until_its_names_change() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path()).unwrap();
    let open = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        ca.open_server(dir.path(), &names).unwrap().chain()[0].to_vec()
    };
    let first = open(&["10.0.0.1"]);
    assert_eq!(open(&["10.0.0.1"]), first);
    let second = open(&["10.0.0.1", "alder.lan"]);
    assert_ne!(second, first);
    std::fs::write(dir.path().join("server.key"), "nonsense").unwrap();
    assert_ne!(open(&["10.0.0.1", "alder.lan"]), second);
    let mode = std::fs::metadata(dir.path().join("server.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}
