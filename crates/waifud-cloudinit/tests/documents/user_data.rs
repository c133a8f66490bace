//! User-data: which kind is recognized, and what is refused with which error.

use proptest::prelude::*;
use waifud_cloudinit::{UserDataError, UserDataKind, unpack_user_data, validate_user_data};

#[test]
fn each_kind_is_recognized_by_its_first_line() {
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
            "#cloud-config-jsonp\n[{\"op\": \"add\", \"path\": \"/packages\", \"value\": []}]\n",
            CloudConfigPatch,
        ),
        ("#!/bin/sh\necho: [unfinished\n", Script),
        ("#include\nhttp://example.org/x\n", Include),
        ("#include-once\nhttp://example.org/x\n", Include),
        ("#cloud-boothook\n#!/bin/sh\n", Boothook),
        (
            "#part-handler\ndef list_types(): return []\ndef handle_part(*a): pass\n",
            PartHandler,
        ),
        ("## template: jinja\n#cloud-config\n{% if x %}\n", Jinja),
        (
            "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x\n\n#!/bin/sh\n--x--\n",
            Mime,
        ),
        (
            "mime-version: 1.0\ncontent-type: multipart/mixed; boundary=x\n\n--x\ncontent-type: text/cloud-config\n\n\
             packages: [htop]\n--x--\n",
            Mime,
        ),
    ] {
        assert_eq!(validate_user_data(text), Ok(kind), "{text}");
    }
}

#[test]
fn invalid_yaml_is_refused_with_its_position_and_not_quoted() {
    let text = "#cloud-config\npassword: hunter2\nusers: [a, b\nx: y\n";
    let error = validate_user_data(text).unwrap_err();
    let UserDataError::NotYaml { line, column, .. } = error else {
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
fn a_cloud_config_that_is_not_a_mapping_is_refused() {
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
    for text in ["packages: [htop]\n", "hello", "# cloud-config\na: 1\n"] {
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
fn exponentially_growing_aliases_are_refused_without_being_expanded() {
    let mut text = String::from("#cloud-config\na0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let line = format!(
            "a{n}: &a{n} [{}]\n",
            vec![format!("*a{}", n - 1); 9].join(", ")
        );
        text.push_str(&line);
    }
    // Expanded, it has 9^12 values, for which no machine has memory.
    let error = validate_user_data(&text).unwrap_err();
    assert!(
        matches!(error, UserDataError::NotYaml { reason, .. }
            if reason == "its aliases expand to more than a million values"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn arbitrary_text_is_accepted_or_refused_without_a_panic(text in "(#cloud-config\n|#!)?\\PC{0,100}") {
        let _verdict = validate_user_data(&text);
    }
}

#[test]
fn a_byte_order_mark_and_base64_are_refused_by_name() {
    assert_eq!(
        validate_user_data("\u{feff}#cloud-config\n"),
        Err(UserDataError::ByteOrderMark)
    );
    for (text, what) in [
        (
            "I2Nsb3VkLWNvbmZpZwpwYWNrYWdlczogW2h0b3BdCg==\n",
            "user-data",
        ),
        ("IyEvYmluL3NoCnRydWUK", "user-data"),
        ("H4sIAAAAAAACA1NOzskvTdFNzs9Ly0znAgAFVrO4DgAAAA==", "gzip"),
    ] {
        let error = validate_user_data(text).unwrap_err();
        assert_eq!(error, UserDataError::Base64 { what });
        assert!(error.hint().contains("base64 -d"));
    }
}

#[test]
fn user_data_that_cloud_init_would_not_run_is_refused_with_its_line() {
    for (text, line, reason) in [
        ("\n#!/bin/sh\n", 1, "with nothing before it"),
        ("#!\n", 1, "full path"),
        ("#!sh\n", 1, "full path"),
        ("#cloud-boothook\necho hello\n", 2, "must begin with #!"),
        ("\n#cloud-boothook\n#!/bin/sh\n", 1, "first line"),
        ("#Cloud-Boothook\n#!/bin/sh\n", 1, "lower case"),
        ("#include\n# nothing\n", 1, "has no URL"),
        (
            "#include\nhttps://example.org/a\nexample.org/b\n",
            3,
            "http://",
        ),
        ("#part-handler\nimport os\n", 1, "list_types()"),
        (
            "\n## template: jinja\n#cloud-config\n",
            1,
            "must begin with the line",
        ),
        (
            "## template: jinja2\n#cloud-config\n",
            1,
            "must begin with the line",
        ),
        (
            "## template: jinja\npackages: [htop]\n",
            2,
            "must continue with",
        ),
        (
            "## template: jinja\n#include\nhttps://example.org/\n",
            2,
            "must continue with",
        ),
        (
            "## template: jinja\n\n#!/bin/sh\n",
            3,
            "must directly follow",
        ),
        ("#cloud-config-jsonp\n[{]\n", 2, "not a JSON list"),
        ("#cloud-config-jsonp\n{}\n", 2, "not a JSON list"),
        (
            "#cloud-config-jsonp\n[{\"op\": \"add\", \"path\": \"/a\"}]\n",
            1,
            "lacks",
        ),
        (
            "#cloud-config-jsonp\n[{\"op\": \"remove\", \"path\": \"a\"}]\n",
            1,
            "lacks",
        ),
    ] {
        match validate_user_data(text) {
            Err(UserDataError::NotUsed {
                line: found,
                reason: why,
            }) => {
                assert_eq!(found, line, "{text}");
                assert!(why.contains(reason), "{text}: {why}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in [
        "#! /bin/sh\n",
        "#cloud-boothook\n\n#!/bin/sh\n",
        "#include https://example.org/a\n",
        "#include-once\nfile:///etc/x\n",
        "## template: jinja\n{% if a %}\n#cloud-config\n{% endif %}\n",
        "## template: jinja\r\n#!/bin/sh\necho {{ ds.meta_data }}\n",
        "#cloud-config-jsonp\n[]\n",
    ] {
        assert!(validate_user_data(text).is_ok(), "{text}");
    }
}

/// A MIME message with one part of that type and body.
fn mime(of_type: &str, encoding: &str, body: &str) -> String {
    format!(
        "Content-Type: multipart/mixed; boundary=\"=x=\"\nMIME-Version: 1.0\n\n--=x=\nContent-Type: {of_type}\n\
         Content-Transfer-Encoding: {encoding}\n\n{body}\n--=x=--\n"
    )
}

#[test]
fn each_part_of_a_mime_message_is_checked_according_to_its_type() {
    for (of_type, encoding, body) in [
        ("application/json", "7bit", "{}"),
        ("text/cloud-config", "7bit", "packages: [htop]"),
        (
            "text/cloud-config; charset=\"utf-8\"",
            "base64",
            "cGFja2FnZXM6IFtodG9wXQo=",
        ),
        (
            "text/x-shellscript",
            "quoted-printable",
            "#!/bin/sh=0Aecho =3D",
        ),
        ("text/x-shellscript", "7bit", "#cloud-config\na: 1"),
        ("text/x-shellscript-per-boot", "7bit", "#!/bin/sh"),
        ("text/plain", "7bit", "#cloud-config\na: 1"),
        ("text/x-include-url", "7bit", "https://example.org/"),
        ("text/jinja2", "7bit", "## template: jinja\n#cloud-config\n"),
        (
            "application/x-gzip",
            "base64",
            "H4sIAAAAAAACA1NOzskvTdFNzs9Ly0znAgAFVrO4DgAAAA==",
        ),
    ] {
        let text = mime(of_type, encoding, body);
        assert_eq!(validate_user_data(&text), Ok(UserDataKind::Mime), "{text}");
    }
    for (of_type, body) in [
        ("text/cloud-config", "a: b: c"),
        ("text/cloud-config", "- a"),
        ("text/x-shellscript", "echo hello"),
        ("text/plain", "hello"),
        ("text/html", "<p>"),
        ("text/cloud-boothook", "#cloud-boothook\necho"),
    ] {
        let error = validate_user_data(&mime(of_type, "7bit", body)).unwrap_err();
        assert!(
            matches!(error, UserDataError::Part { number: 1, .. }),
            "{of_type}: {error:?}"
        );
        assert!(
            error.to_string().starts_with("part 1 of the user-data: "),
            "{error}"
        );
    }
    let none = "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x--\n";
    assert!(validate_user_data(none).is_err());
}

#[test]
fn each_entry_of_an_archive_is_checked() {
    for entry in [
        "|\n  packages: [htop]",
        "|\n  #!/bin/sh\n  true",
        "{content: 'a: 1'}",
        "{type: text/x-shellscript, content: \"#!/bin/sh\\n\"}",
        "{type: text/cloud-config, content: 'a: 1', filename: x}",
        "{type: application/octet-stream, content: !!binary aGk=}",
        "{type: foo/wark, content: 'for a handler of the image'}",
    ] {
        let text = format!("#cloud-config-archive\n- {entry}\n");
        assert_eq!(
            validate_user_data(&text),
            Ok(UserDataKind::CloudConfigArchive),
            "{text}"
        );
    }
    for entry in [
        "7",
        "[a]",
        "a: b: c",
        "'a: b: c'",
        "{content: 7}",
        "{type: shell, content: x}",
        "{type: text/html, content: x}",
        "{type: text/x-shellscript, content: echo}",
        "\"#include\\nhttps://example.org/\"",
    ] {
        let text = format!("#cloud-config-archive\n- 'a: 1'\n- {entry}\n");
        let error = validate_user_data(&text).unwrap_err();
        assert!(
            matches!(
                error,
                UserDataError::Part { number: 2, .. } | UserDataError::NotYaml { .. }
            ),
            "{text}: {error:?}"
        );
    }
}

#[test]
fn gzip_is_decompressed_up_to_the_limit() {
    use std::io::Write;
    let packed = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    let text = "#cloud-config\npackages: [htop]\n";
    assert_eq!(unpack_user_data(&packed(text.as_bytes())).unwrap(), text);
    let large = packed(&vec![b'a'; 64 << 20]);
    assert_eq!(
        unpack_user_data(&large),
        Err(UserDataError::TooLong {
            found: (1 << 20) + 1
        })
    );
    let complete = packed(text.as_bytes());
    assert!(unpack_user_data(&complete[..complete.len() - 6]).is_err());
    assert!(unpack_user_data(&packed(&[0xff, 0xfe])).is_err());
    assert!(unpack_user_data(b"#cloud-config\n").is_err());
}
