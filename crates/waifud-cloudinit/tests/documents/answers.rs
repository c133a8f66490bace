//! The answers to a guest's requests, path by path.

use std::fmt::Write;

use crate::common::{KEY, ask, documents, get, source, tokens};
use proptest::prelude::*;
use waifud_cloudinit::{GuestRequest, Method, VendorOptions, path_of, render};

/// Follows every listing below `path`, as cloud-init does.
fn crawl(path: &str, into: &mut String) {
    let (status, body) = get(&documents(), path);
    writeln!(into, "{path} {status}").unwrap();
    if path.ends_with('/') {
        for name in body.lines() {
            match name.split_once('=') {
                Some((number, _)) => crawl(&format!("{path}{number}/"), into),
                None => crawl(&format!("{path}{name}"), into),
            }
        }
    } else {
        let body = serde_json::from_str::<serde_json::Value>(&body)
            .map_or(body, |value| format!("{value:#}"));
        for line in body.lines() {
            writeln!(into, "    {line}").unwrap();
        }
    }
}

#[test]
fn every_listed_name_in_both_trees_exists() {
    let mut seen = String::new();
    for root in ["/openstack/latest/", "/latest/"] {
        crawl(root, &mut seen);
    }
    assert!(!seen.contains("404"), "{seen}");
    insta::assert_snapshot!(seen);
}

#[test]
fn openstack_lists_versions_without_slashes_and_serves_all_of_them() {
    let documents = documents();
    for root in ["/openstack", "/openstack/"] {
        let (status, body) = get(&documents, root);
        assert_eq!(status, 200);
        assert_eq!(body.lines().last(), Some("latest"));
        for version in body.lines() {
            assert!(!version.ends_with('/'));
            let (status, _) = get(&documents, &format!("/openstack/{version}/meta_data.json"));
            assert_eq!(status, 200, "{version}");
        }
    }
}

#[test]
fn directories_answer_with_and_without_a_slash_and_so_do_ec2_s_leaves() {
    let documents = documents();
    for directory in [
        "/latest/meta-data",
        "/latest/meta-data/public-keys",
        "/latest/meta-data/public-keys/0",
        "/latest/dynamic/instance-identity",
        "/2009-04-04/meta-data",
        "/1.0/meta-data",
    ] {
        let bare = get(&documents, directory);
        assert_eq!(bare.0, 200, "{directory}");
        assert_eq!(bare, get(&documents, &format!("{directory}/")));
    }
    let (status, body) = get(&documents, "/latest/meta-data/public-keys/0/openssh-key");
    assert_eq!((status, body.as_str()), (200, KEY));
    let id = get(&documents, "/latest/meta-data/instance-id");
    assert_eq!(id.0, 200);
    assert_eq!(get(&documents, "/latest/meta-data/instance-id/"), id);
    assert_eq!(get(&documents, "/openstack/latest/meta_data.json/").0, 404);
}

#[test]
fn unknown_paths_are_404() {
    let documents = documents();
    for path in [
        "/nothing",
        "/openstack/2030-01-01/meta_data.json",
        "/openstack/latest/meta_data.json/x",
        "/openstack/latest/../latest/meta_data.json",
        "/latest/meta-data/iam/security-credentials/",
        "/latest/meta-data/public-keys/1",
        "/latest/meta-data/public-key",
        "/20090404/meta-data",
        "/2009-0404a/meta-data",
        "/%6catest/meta-data",
        "/latest/meta%2ddata",
        "/é/meta-data",
    ] {
        assert_eq!(get(&documents, path).0, 404, "{path}");
    }
}

#[test]
fn without_user_data_both_trees_lack_the_document() {
    let documents = render(&waifud_cloudinit::Source {
        user_data: None,
        ..source()
    });
    for path in ["/openstack/latest/user_data", "/latest/user-data"] {
        assert_eq!(get(&documents, path).0, 404);
    }
    assert!(
        !get(&documents, "/openstack/latest/")
            .1
            .contains("user_data")
    );
    assert!(!get(&documents, "/latest/").1.contains("user-data"));
}

#[test]
fn without_keys_and_user_data_documents_are_minimal() {
    let documents = render(&waifud_cloudinit::Source {
        ssh_keys: Vec::new(),
        vendor_data: VendorOptions {
            phone_home: false,
            reports: false,
            report_port: true,
        },
        domain: None,
        nics: Vec::new(),
        ..source()
    });
    assert_eq!(
        get(&documents, "/openstack/latest/vendor_data.json").1,
        "{}"
    );
    assert!(
        !get(&documents, "/latest/meta-data/")
            .1
            .contains("public-keys")
    );
    assert_eq!(get(&documents, "/latest/meta-data/hostname").1, "web");
}

#[test]
fn absolute_form_and_queries_lead_to_the_same_document() {
    let documents = documents();
    let wanted = get(&documents, "/latest/meta-data/instance-id");
    assert_eq!(wanted.1, source().instance_id);
    for target in [
        "http://169.254.169.254/latest/meta-data/instance-id",
        "HTTP://elsewhere.example:8080/latest/meta-data/instance-id?x=/y#z",
        "/latest/meta-data/instance-id?recursive=true",
        "//latest///meta-data/instance-id",
    ] {
        assert_eq!(get(&documents, target), wanted, "{target}");
    }
    assert_eq!(path_of("http://host"), "/");
    assert_eq!(path_of("http://host?x"), "/");
    assert_eq!(get(&documents, "*").0, 400);
    assert_eq!(get(&documents, "host:80").0, 400);
}

#[test]
fn head_answers_like_get_and_writing_is_refused() {
    let documents = documents();
    let target = "/openstack/latest/user_data";
    let head = GuestRequest {
        method: Method::Head,
        ..GuestRequest::get(target)
    };
    assert_eq!(
        ask(&documents, &head),
        ask(&documents, &GuestRequest::get(target))
    );
    for method in [Method::Put, Method::Other] {
        let request = GuestRequest {
            method,
            ..GuestRequest::get(target)
        };
        let answer = ask(&documents, &request);
        assert_eq!((answer.status, answer.allow), (405, Some("GET, HEAD")));
    }
}

#[test]
fn tokens_are_valid_for_1_to_21600_seconds_and_refused_to_proxies() {
    let documents = documents();
    let put = |ttl, forwarded| {
        let request = GuestRequest {
            method: Method::Put,
            target: "/latest/api/token",
            token: None,
            token_ttl: ttl,
            forwarded,
        };
        ask(&documents, &request)
    };
    for ttl in ["1", "21600", " 60 "] {
        let answer = put(Some(ttl), false);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.token_ttl, ttl.trim().parse().ok());
    }
    for ttl in [
        None,
        Some("0"),
        Some("21601"),
        Some("-1"),
        Some("x"),
        Some(""),
    ] {
        assert_eq!(put(ttl, false).status, 400, "{ttl:?}");
    }
    assert_eq!(put(Some("60"), true).status, 403);
    let answer = ask(&documents, &GuestRequest::get("/latest/api/token"));
    assert_eq!((answer.status, answer.allow), (405, Some("PUT")));
}

#[test]
fn requests_with_an_invalid_token_are_refused_and_without_one_answered() {
    let documents = documents();
    let get = |token| {
        let request = GuestRequest {
            token,
            ..GuestRequest::get("/latest/meta-data/instance-id")
        };
        ask(&documents, &request).status
    };
    let token = tokens().issue(source().instance, crate::common::NOW, 60);
    assert_eq!(get(Some(&token)), 200);
    assert_eq!(get(None), 200);
    assert_eq!(get(Some("wrong")), 401);
    let late = tokens().issue(source().instance, crate::common::NOW - 60, 60);
    assert_eq!(get(Some(&late)), 401);
}

#[test]
fn debug_output_contains_no_document() {
    let documents = documents();
    let answer = ask(&documents, &GuestRequest::get("/latest/user-data"));
    let shown = format!("{documents:?} {answer:?} {:?}", source());
    assert!(!shown.contains("htop"), "{shown}");
}

proptest! {
    #[test]
    fn every_target_is_answered_and_only_200_contains_documents(
        target in ".{0,80}|(/(latest|openstack|2009-04-04|meta-data|user-data|public-keys|0|\\.\\.|)){0,6}/?",
    ) {
        let documents = documents();
        let answer = ask(&documents, &GuestRequest::get(&target));
        prop_assert!([200, 400, 404, 405].contains(&answer.status));
        if answer.status != 200 {
            prop_assert!(answer.body.len() < 30);
        }
    }
}
