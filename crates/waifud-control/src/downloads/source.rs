//! Where an image comes from: what may be asked for, and what proves that the right bytes came. Pure.

use std::net::IpAddr;

use reqwest::Url;
use url_host::Host;
use waifud_api::{CreateDownload, Problem};
use waifud_types::{Checksum, Digest};

use super::checksum_file;
use crate::image_store::sha256;
use crate::{catalog, problems};

/// The longest URL that is taken.
const URL_MAX: usize = 2048;

/// What decides about addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Whether this machine's own services may be asked; what comes from them counts as safe from eavesdroppers.
    pub loopback: bool,
}

/// A place to fetch from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// The image.
    pub url: Url,
    /// What proves its bytes.
    pub proof: Proof,
}

/// What proves that the right bytes came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proof {
    /// A checksum that the asker gave.
    Given(Checksum),
    /// A checksum in the publisher's list.
    Listed {
        /// The list.
        url: Url,
        /// What the image is called in it.
        name: String,
        /// Whether it is a list of one.
        for_one: bool,
    },
    /// Nothing but https; the asker said so in as many words.
    HttpsAlone,
}

/// Fills in what the catalog knows. With `mirror`, its images come from there: `MIRROR/HOST/PATH`.
pub fn complete(request: CreateDownload, mirror: &str) -> Result<CreateDownload, Problem> {
    if request.url.is_some() {
        return match request.catalog {
            None => Ok(request),
            Some(_) => Err(
                Problem::new(422, "two-sources", "url and catalog can't both be given")
                    .field("catalog")
                    .hint("give one of them"),
            ),
        };
    }
    let wanted = request.catalog.as_deref().unwrap_or(&request.name);
    let entry = catalog::entry(wanted).ok_or_else(|| problems::not_in_catalog(wanted))?;
    let mirrored = |url: &str| match url.strip_prefix("https://") {
        Some(rest) if !mirror.is_empty() => format!("{}/{rest}", mirror.trim_end_matches('/')),
        _ => url.to_owned(),
    };
    let own_proof = request.checksum.is_some() || request.checksums_url.is_some();
    Ok(CreateDownload {
        catalog: None,
        url: Some(mirrored(&entry.url)),
        checksums_url: if own_proof {
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

/// Reads a complete request, and refuses what may not be fetched.
pub fn source(request: &CreateDownload, reach: Reach) -> Result<Source, Problem> {
    let text = request.url.as_deref().unwrap_or_default();
    let named = request.checksum.is_some();
    let proof = match (&request.checksum, &request.checksums_url) {
        (Some(_), Some(_)) => {
            return Err(Problem::new(
                422,
                "two-checksums",
                "checksum and checksums_url can't both be given",
            )
            .field("checksums_url")
            .hint("give the checksum if you know it, else the list"));
        }
        (Some(checksum), None) => Some(Proof::Given(checksum.clone())),
        _ if request.insecure_no_checksum && request.checksums_url.is_none() => {
            Some(Proof::HttpsAlone)
        }
        (None, Some(_)) => None,
        (None, None) => return Err(problems::no_checksum()),
    };
    let url = parse("url", text, named || request.checksums_url.is_some(), reach)?;
    let proof = match proof {
        Some(proof) => proof,
        None => listed(request, &url, reach)?,
    };
    Ok(Source { url, proof })
}

fn listed(request: &CreateDownload, image: &Url, reach: Reach) -> Result<Proof, Problem> {
    let text = request.checksums_url.as_deref().unwrap_or_default();
    // A list that came in the clear proves nothing.
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
            "the URL does not end in a file's name, so the list can't be searched for it",
        )
        .field("checksums_file")
        .hint("say what the image is called in the list: --checksums-file NAME"));
    }
    let for_one = checksum_file::is_for_one(url.as_str(), image.as_str());
    Ok(Proof::Listed { url, name, for_one })
}

/// Names a source: requests for the same bytes, proven in the same way, have the same one.
pub fn name(source: &Source) -> Digest {
    let proof = match &source.proof {
        Proof::Given(checksum) => checksum.to_string(),
        Proof::Listed { url, name, .. } => format!("{url} {name}"),
        Proof::HttpsAlone => String::new(),
    };
    sha256(format!("{}\n{proof}", source.url).as_bytes())
}

fn parse(field: &str, text: &str, plain_is_fine: bool, reach: Reach) -> Result<Url, Problem> {
    let refused = |why: String| {
        Problem::new(422, "bad-url", why)
            .field(field)
            .hint("such as https://cloud.debian.org/images/…/debian-12-genericcloud-amd64.qcow2")
    };
    if text.len() > URL_MAX {
        return Err(refused(format!(
            "a URL of more than {URL_MAX} bytes is not taken"
        )));
    }
    let mut url = Url::parse(text).map_err(|e| refused(format!("it is not a URL: {e}")))?;
    url.set_fragment(None);
    may_ask(&url, plain_is_fine, reach).map_err(refused)?;
    Ok(url)
}

/// Whether a URL, given or redirected to, may be asked; or why not.
pub fn may_ask(url: &Url, plain_is_fine: bool, reach: Reach) -> Result<(), String> {
    let host = Host::of(url).ok_or("it names no host")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it carries a user or a password, which would be shown in lists".to_owned());
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
        "http" if plain_is_fine || (on_loopback && reach.loopback) => Ok(()),
        "http" => Err("http is only taken for an image whose checksum is known".to_owned()),
        other => Err(format!("{other} is not taken; https is")),
    }
}

const LOOPBACK: &str = "it leads to waifud's own machine; downloads_from_loopback allows that";

/// Why nothing is asked at an address. The metadata services of clouds are among these, whatever the settings.
pub fn forbidden(address: IpAddr, reach: Reach) -> Option<&'static str> {
    let address = address.to_canonical();
    if address.is_loopback() {
        return (!reach.loopback).then_some(LOOPBACK);
    }
    let (link_local, metadata, nowhere) = match address {
        IpAddr::V4(v4) => (
            v4.is_link_local(),
            // Alibaba's; the others' is link-local.
            v4.octets() == [100, 100, 100, 200],
            v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast() || v4.octets()[0] == 0,
        ),
        IpAddr::V6(v6) => (
            v6.is_unicast_link_local(),
            // Amazon's.
            v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
            v6.is_unspecified() || v6.is_multicast(),
        ),
    };
    if link_local || metadata {
        Some("it leads to a link-local address, where metadata services are")
    } else if nowhere {
        Some("it leads to an address that is no server's")
    } else {
        None
    }
}

/// The host of a URL, without the `url` crate's own type, which reqwest does not show.
mod url_host {
    use std::net::IpAddr;

    use reqwest::Url;

    /// A name or an address.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Host<'a> {
        /// To be resolved.
        Name(&'a str),
        /// As it is.
        Address(IpAddr),
    }

    impl<'a> Host<'a> {
        /// The host; `None` without one.
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

    const HOME: Reach = Reach { loopback: false };

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
    fn a_checksum_is_needed_and_http_only_goes_with_one() {
        let code = |request: &CreateDownload| source(request, HOME).unwrap_err().code;
        assert_eq!(code(&request("https://example.org/a.qcow2")), "no-checksum");
        assert!(source(&with_checksum("http://example.org/a.qcow2"), HOME).is_ok());
        let mut insecure = request("https://example.org/a.qcow2");
        insecure.insecure_no_checksum = true;
        assert_eq!(source(&insecure, HOME).unwrap().proof, Proof::HttpsAlone);
        insecure.url = Some("http://example.org/a.qcow2".into());
        assert_eq!(code(&insecure), "bad-url");
        let mut listed = request("http://example.org/a.qcow2");
        listed.checksums_url = Some("http://example.org/SHA256SUMS".into());
        assert_eq!(
            source(&listed, HOME).unwrap_err().field.as_deref(),
            Some("checksums_url")
        );
        listed.checksums_url = Some("https://example.org/SHA256SUMS".into());
        assert!(source(&listed, HOME).is_ok());
    }

    #[test]
    fn what_leads_to_this_machine_or_its_link_is_refused() {
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
            let problem = source(&with_checksum(bad), HOME).unwrap_err();
            assert_eq!(
                (problem.code.as_str(), problem.field.as_deref()),
                ("bad-url", Some("url")),
                "{bad}"
            );
            assert!(!problem.title.contains("secret"));
        }
        let open = Reach { loopback: true };
        assert!(source(&with_checksum("http://127.0.0.1:80/a"), open).is_ok());
        assert!(source(&with_checksum("https://169.254.169.254/a"), open).is_err());
        assert!(source(&with_checksum("https://192.168.1.4/a"), HOME).is_ok());
    }

    #[test]
    fn the_catalog_fills_in_and_a_mirror_takes_its_place() {
        let asked = CreateDownload {
            name: "debian-12".into(),
            ..CreateDownload::default()
        };
        let complete_one = complete(asked.clone(), "").unwrap();
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
    fn the_same_bytes_and_proof_have_the_same_name() {
        let name_of = |request: &CreateDownload| name(&source(request, HOME).unwrap());
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
