//! User-data: what is taken for what, and what is refused with which words.

use proptest::prelude::*;
use waifud_cloudinit::{UserDataError, UserDataKind, validate_user_data};

#[test]
fn each_kind_is_told_by_its_first_line() {
    use UserDataKind::{
        Boothook, CloudConfig, CloudConfigArchive, CloudConfigPatch, Empty, Include, Jinja, Mime,
        PartHandler, Script,
    };
    for (text, kind) in [
        ("", Empty),
        (" \n\n", Empty),
        ("#cloud-config\n", CloudConfig),
        ("#cloud-config\n# nothing yet\n", CloudConfig),
        ("#cloud-config\npackages: [htop]\n", CloudConfig),
        ("\n#Cloud-Config\r\nlocale: false\r\n", CloudConfig),
        ("#cloud-config\n{\"packages\": [\"htop\"]}", CloudConfig),
        (
            "#cloud-config\na: &x {b: 1}\nc:\n  <<: *x\na: again\n",
            CloudConfig,
        ),
        (
            "#cloud-config\nwrite_files:\n- content: !!binary |\n    f0VMRgIB//8AAAA=\n    AAAA\n  path: /x\n- content: |\n    a\n    b\n",
            CloudConfig,
        ),
        (
            "#cloud-config-archive\n- type: text/cloud-config\n  content: |\n    a: 1\n",
            CloudConfigArchive,
        ),
        (
            "#cloud-config-jsonp\n[{\"op\": \"add\"}]\n",
            CloudConfigPatch,
        ),
        ("#!/bin/sh\necho: [unfinished\n", Script),
        ("#include\nhttp://example.org/x\n", Include),
        ("#include-once\nhttp://example.org/x\n", Include),
        ("#cloud-boothook\n#!/bin/sh\n", Boothook),
        ("#part-handler\nimport os\n", PartHandler),
        ("## template: jinja\n#cloud-config\n{% if x %}\n", Jinja),
        (
            "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x--\n",
            Mime,
        ),
        (
            "mime-version: 1.0\ncontent-type: multipart/mixed; boundary=x\n\n--x--\n",
            Mime,
        ),
    ] {
        assert_eq!(validate_user_data(text), Ok(kind), "{text}");
    }
}

#[test]
fn broken_yaml_is_refused_at_its_place_and_not_quoted() {
    let text = "#cloud-config\npassword: hunter2\nusers: [a, b\nx: y\n";
    let error = validate_user_data(text).unwrap_err();
    let UserDataError::NotYaml { line, column } = error else {
        panic!("{error}");
    };
    assert!((3..=5).contains(&line), "{line}:{column}");
    assert!(column > 0);
    assert!(!format!("{error} {error:?} {}", error.hint()).contains("hunter2"));
    for text in [
        "#cloud-config\na:\n\tb: 1\n",
        "#cloud-config\na: b: c\n",
        "#cloud-config\na: *nobody\n",
        "#cloud-config\na: 1\n---\nb: 2\n",
    ] {
        assert!(
            matches!(validate_user_data(text), Err(UserDataError::NotYaml { .. })),
            "{text}"
        );
    }
}

#[test]
fn a_cloud_config_that_is_no_mapping_is_refused() {
    for text in [
        "#cloud-config\n- a\n",
        "#cloud-config\njust words\n",
        "#cloud-config\n7\n",
        "#cloud-config-archive\na: 1\n",
    ] {
        assert!(
            matches!(
                validate_user_data(text),
                Err(UserDataError::WrongShape { .. })
            ),
            "{text}"
        );
    }
}

#[test]
fn other_first_lines_are_refused_with_a_hint() {
    for text in [
        "packages: [htop]\n",
        "hello",
        "# cloud-config\na: 1\n",
        "\u{feff}#cloud-config\n",
    ] {
        let error = validate_user_data(text).unwrap_err();
        assert!(matches!(error, UserDataError::UnknownKind { .. }), "{text}");
        assert!(error.hint().contains("#cloud-config"));
    }
    let error =
        validate_user_data("Content-Type: multipart/mixed; boundary=x\n\n--x--\n").unwrap_err();
    assert!(error.hint().contains("MIME-Version"));
}

#[test]
fn binary_and_oversized_texts_are_refused() {
    assert_eq!(
        validate_user_data("#cloud-config\na: 1\n\u{0}"),
        Err(UserDataError::Binary { line: 3 })
    );
    assert_eq!(
        validate_user_data("#!/bin/sh\n\u{1b}[0m"),
        Err(UserDataError::Binary { line: 2 })
    );
    let just = format!("#!/bin/sh\n{}", "x".repeat((1 << 20) - 10));
    assert_eq!(validate_user_data(&just), Ok(UserDataKind::Script));
    let found = (1 << 20) + 1;
    assert_eq!(
        validate_user_data(&format!("{just}x")),
        Err(UserDataError::TooLong { found })
    );
}

#[test]
fn aliases_that_would_grow_without_end_are_refused_quickly() {
    let mut text = String::from("#cloud-config\na0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let line = format!(
            "a{n}: &a{n} [{}]\n",
            vec![format!("*a{}", n - 1); 9].join(", ")
        );
        text.push_str(&line);
    }
    assert!(validate_user_data(&text).is_err());
}

proptest! {
    #[test]
    fn any_text_gets_a_verdict(text in "(#cloud-config\n|#!)?\\PC{0,100}") {
        let _verdict = validate_user_data(&text);
    }
}
