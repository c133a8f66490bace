//! The source of a download: its URL and how the image is verified. Pure.

use reqwest::Url;
use url_host::Host;
use waifud_api::hint::{Hint, HintAction};
use waifud_api::{CreateDownload, Problem};
use waifud_store::TemplateRow;
use waifud_types::{Checksum, Digest};

use super::checksum_file;
use super::problems;
use super::reach::{LOOPBACK, Reach, forbidden};
use crate::images::catalog;

/// The maximum length of a URL.
const URL_MAX: usize = 2048;

/// The source of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The URL of the image.
    pub url: Url,
    /// How the image is verified.
    pub proof: Proof,
    /// Whether the URL is from the catalog or the administrator's mirror; errors then contain details.
    pub from_catalog_entry: bool,
}

/// How an image is verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proof {
    /// With a checksum from the request.
    Given(Checksum),
    /// With a checksum from the publisher's list.
    Listed {
        /// The URL of the list.
        url: Url,
        /// The name of the image in the list.
        name: String,
        /// Whether the list is for this image only.
        for_one: bool,
    },
    /// Only by https, as explicitly requested.
    HttpsAlone,
}

/// Completes a request from the catalog. With `mirror`, the catalog's images come from `MIRROR/HOST/PATH`.
pub fn complete(request: CreateDownload, mirror: &str) -> Result<CreateDownload, Problem> {
    if request.url.is_some() {
        return match request.catalog {
            None => Ok(request),
            Some(_) => {
                Err(
                    Problem::new(422, "two-sources", "url and catalog cannot both be given")
                        .field("catalog")
                        .hint("give only one of them"),
                )
            }
        };
    }
    let wanted = request.catalog.as_deref().unwrap_or(&request.name);
    let entry = catalog::entry(wanted).ok_or_else(|| problems::not_in_catalog(wanted))?;
    let mirrored = |url: &str| match url.strip_prefix("https://") {
        Some(rest) if !mirror.is_empty() => format!("{}/{rest}", mirror.trim_end_matches('/')),
        _ => url.to_owned(),
    };
    let own_checksum = request.checksum.is_some() || request.checksums_url.is_some();
    Ok(CreateDownload {
        // Stored, so that a refresh uses the catalog again.
        catalog: Some(wanted.to_owned()),
        url: Some(mirrored(&entry.url)),
        checksums_url: if own_checksum {
            request.checksums_url
        } else {
            Some(mirrored(&entry.checksums_url))
        },
        arch: request.arch.or_else(|| Some(entry.arch.clone())),
        datasource: request.datasource.or(Some(entry.datasource)),
        firmware: request.firmware.or(Some(entry.firmware)),
        default_user: request
            .default_user
            .or_else(|| Some(entry.default_user.clone())),
        ..request
    })
}

/// The request to download a template's image again. With `mirror`, the catalog's images come from there.
pub fn refresh(row: TemplateRow, mirror: &str) -> Result<CreateDownload, Problem> {
    let TemplateRow { template, arch } = row;
    let request = CreateDownload {
        name: template.name.to_string(),
        arch: Some(arch),
        datasource: Some(template.datasource),
        firmware: Some(template.firmware),
        default_user: template.default_user,
        ..CreateDownload::default()
    };
    let Some(origin) = template.source else {
        return Err(problems::no_source(&template.name));
    };
    let in_catalog = origin
        .catalog
        .filter(|entry| catalog::entry(entry).is_some());
    if in_catalog.is_some() {
        // This waifud's catalog may have a newer URL. A checksum given by the user is kept.
        return Ok(CreateDownload {
            catalog: in_catalog,
            checksum: origin.checksum,
            ..request
        });
    }
    if origin.checksum.is_some() || origin.checksums_url.is_some() || origin.insecure_no_checksum {
        return Ok(CreateDownload {
            url: Some(origin.url),
            checksum: origin.checksum,
            checksums_url: origin.checksums_url,
            checksums_file: origin.checksums_file,
            insecure_no_checksum: origin.insecure_no_checksum,
            ..request
        });
    }
    // An old template: only the URL and the checksum of the downloaded image are known.
    let from_catalog = CreateDownload {
        catalog: Some(template.name.to_string()),
        ..request.clone()
    };
    let known = complete(from_catalog.clone(), mirror);
    if known.is_ok_and(|known| known.url.as_ref() == Some(&origin.url)) {
        return Ok(from_catalog);
    }
    let mut revisions = template.revisions.into_iter();
    let checksum = revisions
        .find(|revision| revision.image == template.current)
        .and_then(|revision| revision.checksum?.parse().ok());
    if checksum.is_none() {
        return Err(problems::no_source(&template.name));
    }
    Ok(CreateDownload {
        url: Some(origin.url),
        checksum,
        ..request
    })
}

/// Parses a complete request, and refuses URLs that are not allowed.
pub fn source(request: &CreateDownload, reach: &Reach) -> Result<Source, Problem> {
    let text = request.url.as_deref().unwrap_or_default();
    let has_checksum = request.checksum.is_some();
    let proof = match (&request.checksum, &request.checksums_url) {
        (Some(_), Some(_)) => {
            return Err(Problem::new(
                422,
                "two-checksums",
                "checksum and checksums_url cannot both be given",
            )
            .field("checksums_url")
            .hint("give the checksum if you know it, otherwise the list"));
        }
        (Some(checksum), None) => Some(Proof::Given(checksum.clone())),
        _ if request.insecure_no_checksum && request.checksums_url.is_none() => {
            Some(Proof::HttpsAlone)
        }
        (None, Some(_)) => None,
        (None, None) => return Err(problems::no_checksum()),
    };
    let url = parse(
        "url",
        text,
        has_checksum || request.checksums_url.is_some(),
        reach,
    )?;
    let proof = match proof {
        Some(proof) => proof,
        None => listed(request, &url, reach)?,
    };
    Ok(Source {
        url,
        proof,
        from_catalog_entry: request.catalog.is_some(),
    })
}

fn listed(request: &CreateDownload, image: &Url, reach: &Reach) -> Result<Proof, Problem> {
    let text = request.checksums_url.as_deref().unwrap_or_default();
    // A list over http could be forged.
    let url = parse("checksums_url", text, false, reach)?;
    let last = image
        .path_segments()
        .and_then(|mut segments| segments.next_back())
        .unwrap_or_default();
    let name = request
        .checksums_file
        .clone()
        .unwrap_or_else(|| last.to_owned());
    if name.is_empty() {
        return Err(Problem::new(
            422,
            "no-file-name",
            "the URL does not end with a file name to look up in the list",
        )
        .field("checksums_file")
        .hint(Hint::action(&HintAction::NameInChecksums)));
    }
    // A URL encodes some characters, for example a plus sign as `%2B`.
    let name = decoded(&name);
    let for_one = checksum_file::is_for_one(url.as_str(), image.as_str());
    Ok(Proof::Listed { url, name, for_one })
}

/// The name without percent-encoding, if the result is valid UTF-8.
fn decoded(name: &str) -> String {
    percent_encoding::percent_decode_str(name)
        .decode_utf8()
        .map_or_else(|_| name.to_owned(), std::borrow::Cow::into_owned)
}

/// The id of a source: the same for requests with the same URL and verification.
pub fn name(source: &Source) -> Digest {
    let proof = match &source.proof {
        Proof::Given(checksum) => checksum.to_string(),
        Proof::Listed { url, name, .. } => format!("{url} {name}"),
        Proof::HttpsAlone => String::new(),
    };
    waifud_types::Digest::of(format!("{}\n{proof}", source.url).as_bytes())
}

fn parse(field: &str, text: &str, http_allowed: bool, reach: &Reach) -> Result<Url, Problem> {
    let refused = |why: String| {
        Problem::new(422, "invalid-url", why).field(field).hint(
            if text.starts_with("http://") && !http_allowed {
                "use https, or give the image's checksum (sha256:…)"
            } else {
                "for example https://cloud.debian.org/images/…/debian-12-genericcloud-amd64.qcow2"
            },
        )
    };
    if text.len() > URL_MAX {
        return Err(refused(format!(
            "the URL exceeds the limit of {URL_MAX} bytes"
        )));
    }
    let mut url = Url::parse(text).map_err(|e| refused(format!("invalid URL: {e}")))?;
    url.set_fragment(None);
    check_url(&url, http_allowed, reach).map_err(refused)?;
    Ok(url)
}

/// Checks whether a URL, from a request or a redirect, is allowed; the error is the reason.
pub fn check_url(url: &Url, http_allowed: bool, reach: &Reach) -> Result<(), String> {
    let host = Host::of(url).ok_or("the URL has no host")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "the URL contains a user name or password, which every list of templates would show"
                .to_owned(),
        );
    }
    let on_loopback = match host {
        Host::Address(address) => {
            if let Some(why) = forbidden(address, reach) {
                return Err(why.to_owned());
            }
            address.is_loopback()
        }
        Host::Name("localhost") if !reach.loopback => return Err(LOOPBACK.to_owned()),
        Host::Name(name) => name == "localhost",
    };
    match url.scheme() {
        "https" => Ok(()),
        "http" if http_allowed || (on_loopback && reach.loopback) => Ok(()),
        "http" => Err("http is allowed only if the image's checksum is known".to_owned()),
        other => Err(format!("the scheme {other} is not supported; use https")),
    }
}

/// The host of a URL. reqwest does not export the type of the `url` crate.
pub(super) mod url_host {
    use std::net::IpAddr;

    use reqwest::Url;

    /// The host of a URL.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Host<'a> {
        /// A name to resolve.
        Name(&'a str),
        /// An address.
        Address(IpAddr),
    }

    impl<'a> Host<'a> {
        /// The host of a URL; `None` if it has none.
        pub fn of(url: &'a Url) -> Option<Self> {
            let text = url.host_str().filter(|host| !host.is_empty())?;
            let bare = text.trim_start_matches('[').trim_end_matches(']');
            Some(match bare.parse() {
                Ok(address) => Self::Address(address),
                Err(_) => Self::Name(text.trim_end_matches('.')),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Reach {
        Reach::default()
    }

    fn request(url: &str) -> CreateDownload {
        CreateDownload {
            name: "x".into(),
            url: Some(url.into()),
            ..CreateDownload::default()
        }
    }

    fn with_checksum(url: &str) -> CreateDownload {
        CreateDownload {
            checksum: Checksum::from_hex(&"a".repeat(64)),
            ..request(url)
        }
    }

    #[test]
    fn a_checksum_is_required_and_http_needs_one() {
        let code = |request: &CreateDownload| source(request, &home()).unwrap_err().code;
        assert_eq!(code(&request("https://example.org/a.qcow2")), "no-checksum");
        assert!(source(&with_checksum("http://example.org/a.qcow2"), &home()).is_ok());
        let mut insecure = request("https://example.org/a.qcow2");
        insecure.insecure_no_checksum = true;
        assert_eq!(source(&insecure, &home()).unwrap().proof, Proof::HttpsAlone);
        insecure.url = Some("http://example.org/a.qcow2".into());
        assert_eq!(code(&insecure), "invalid-url");
        let mut listed = request("http://example.org/a.qcow2");
        listed.checksums_url = Some("http://example.org/SHA256SUMS".into());
        assert_eq!(
            source(&listed, &home()).unwrap_err().field.as_deref(),
            Some("checksums_url")
        );
        listed.checksums_url = Some("https://example.org/SHA256SUMS".into());
        assert!(source(&listed, &home()).is_ok());
    }

    #[test]
    fn urls_of_this_machine_and_link_local_urls_are_refused() {
        for bad in [
            "https://169.254.169.254/latest/meta-data/",
            "https://[fe80::1]/a",
            "https://[::ffff:169.254.169.254]/a",
            "https://[fd00:ec2::254]/a",
            "https://127.0.0.1/a",
            "https://2130706433/a",
            "https://0x7f.1/a",
            "https://[::1]/a",
            "https://localhost/a",
            "https://localhost./a",
            "https://0.0.0.0/a",
            "https://224.0.0.1/a",
            "ftp://example.org/a",
            "file:///etc/shadow",
            "https://user:secret@example.org/a",
            "https:///",
            "nothing",
        ] {
            let problem = source(&with_checksum(bad), &home()).unwrap_err();
            assert_eq!(
                (problem.code.as_str(), problem.field.as_deref()),
                ("invalid-url", Some("url")),
                "{bad}"
            );
            assert!(!problem.title.contains("secret"));
        }
        let open = Reach {
            loopback: true,
            ..Reach::default()
        };
        assert!(source(&with_checksum("http://127.0.0.1:80/a"), &open).is_ok());
        assert!(source(&with_checksum("https://169.254.169.254/a"), &open).is_err());
        assert!(source(&with_checksum("https://192.168.1.4/a"), &home()).is_ok());
    }

    #[test]
    fn the_catalog_completes_a_request_and_a_mirror_replaces_its_host() {
        let asked = CreateDownload {
            name: "debian-12".into(),
            ..CreateDownload::default()
        };
        let complete_one = complete(asked.clone(), "").unwrap();
        assert_eq!(complete_one.catalog.as_deref(), Some("debian-12"));
        assert!(source(&complete_one, &home()).unwrap().from_catalog_entry);
        assert!(
            complete_one
                .url
                .unwrap()
                .starts_with("https://cloud.debian.org/")
        );
        assert_eq!(complete_one.default_user.as_deref(), Some("debian"));
        let mirrored = complete(asked, "http://127.0.0.1:9/").unwrap();
        assert!(
            mirrored
                .url
                .unwrap()
                .starts_with("http://127.0.0.1:9/cloud.debian.org/images/")
        );
        let unknown = CreateDownload {
            name: "plan-9".into(),
            ..CreateDownload::default()
        };
        assert_eq!(complete(unknown, "").unwrap_err().code, "not-in-catalog");
    }

    #[test]
    fn the_name_in_the_list_is_the_decoded_file_name() {
        let mut listed = request("https://example.org/my%20disk%2B1.qcow2");
        listed.checksums_url = Some("https://example.org/SHA256SUMS".into());
        let name_of = |request: &CreateDownload| match source(request, &home()).unwrap().proof {
            Proof::Listed { name, .. } => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(name_of(&listed), "my disk+1.qcow2");
        listed.url = Some("https://example.org/my+disk.qcow2".into());
        assert_eq!(name_of(&listed), "my+disk.qcow2");
    }

    fn downloaded(name: &str, origin: &serde_json::Value) -> TemplateRow {
        let image = format!("sha256:{}", "b".repeat(64));
        let template = serde_json::json!({
            "name": name, "datasource": "cidata", "firmware": "uefi", "default_user": "me",
            "min_disk_bytes": 1, "current": image, "used_by": 0, "source": origin,
            "revisions": [{
                "image": image, "arch": "x86_64", "source_url": origin["url"], "checksum": image,
                "seen_at": "2026-11-29T00:00:00Z", "size_bytes": 1,
            }],
        });
        TemplateRow {
            template: serde_json::from_value(template).unwrap(),
            arch: "aarch64".into(),
        }
    }

    #[test]
    fn a_refresh_uses_the_catalog_the_list_or_the_url_again() {
        let origin = |url: &str| {
            serde_json::json!({
                "url": url, "catalog": null, "checksum": null, "checksums_url": null,
                "checksums_file": null, "insecure_no_checksum": false,
            })
        };
        let mut from_catalog = origin("https://old.example/d.qcow2");
        from_catalog["catalog"] = "debian-12".into();
        let asked = refresh(downloaded("d", &from_catalog), "").unwrap();
        assert_eq!(
            (asked.catalog.as_deref(), asked.url),
            (Some("debian-12"), None)
        );
        assert_eq!(asked.arch.as_deref(), Some("aarch64"));
        assert_eq!(asked.default_user.as_deref(), Some("me"));

        let mut listed = origin("https://example.org/a.qcow2");
        listed["checksums_url"] = "https://example.org/SUMS".into();
        let asked = refresh(downloaded("a", &listed), "").unwrap();
        assert_eq!(
            asked.checksums_url.as_deref(),
            Some("https://example.org/SUMS")
        );
        assert_eq!(asked.url.as_deref(), Some("https://example.org/a.qcow2"));

        // From an old database with only the URL.
        let catalog_url = catalog::entry("debian-12").unwrap().url.clone();
        let asked = refresh(downloaded("debian-12", &origin(&catalog_url)), "").unwrap();
        assert_eq!(asked.catalog.as_deref(), Some("debian-12"));
        let asked = refresh(downloaded("a", &origin("https://example.org/a")), "").unwrap();
        assert_eq!(asked.checksum, Checksum::from_hex(&"b".repeat(64)));
        // An entry that is missing from the catalog.
        let mut gone = origin("https://example.org/a");
        gone["catalog"] = "plan-9".into();
        let asked = refresh(downloaded("a", &gone), "").unwrap();
        assert_eq!((asked.catalog, asked.checksum.is_some()), (None, true));

        let uploaded = downloaded("a", &serde_json::Value::Null);
        assert_eq!(
            refresh(uploaded, "").unwrap_err().code,
            "template-without-source"
        );
    }

    #[test]
    fn the_same_url_and_verification_have_the_same_id() {
        let name_of = |request: &CreateDownload| name(&source(request, &home()).unwrap());
        let first = with_checksum("https://example.org/a.qcow2");
        assert_eq!(
            name_of(&first),
            name_of(&with_checksum("https://example.org/a.qcow2#x"))
        );
        assert_ne!(
            name_of(&first),
            name_of(&with_checksum("https://example.org/b.qcow2"))
        );
    }
}
