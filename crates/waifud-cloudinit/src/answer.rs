//! Answers a guest's request: a pure function of the guest's documents.
//!
//! There are three trees: `/openstack/VERSION/…`, EC2's `/VERSION/meta-data/…` (cloud-init's OpenStack datasource reads
//! both), and `/nocloud/…`. Directories list their children, with and without a slash at the end of the path. Paths are
//! compared without decoding or normalizing, so each document has one path only.

use std::{borrow::Cow, fmt};

use crate::{
    Documents,
    documents::{Leaf, Tree},
    token::{TTL_MAX, Tokens},
};

/// The OpenStack versions of cloud-init (`OS_VERSIONS`, in 22.4 and 25.1), oldest first. cloud-init selects the newest
/// listed one by exact comparison: with a slash after a version it would fall back to `latest`.
const OPENSTACK_VERSIONS: [&str; 9] = [
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    LATEST,
];

/// The EC2 versions in the root's listing. All dated versions are served.
const EC2_VERSIONS: &str = "1.0\n2009-04-04\n2021-03-23\nlatest";

const LATEST: &str = "latest";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// The supported HTTP methods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Read a document.
    Get,
    /// Read its headers.
    Head,
    /// Request EC2's session token.
    Put,
    /// Any other method, which is refused.
    Other,
}

/// The parts of a guest's request that an answer depends on, apart from the guest's identity.
#[derive(Clone, Copy, Debug)]
pub struct GuestRequest<'a> {
    /// The method.
    pub method: Method,
    /// The request target in origin form or absolute form (RFC 9112, section 3.2). Host and query are ignored.
    pub target: &'a str,
    /// `X-aws-ec2-metadata-token`.
    pub token: Option<&'a str>,
    /// `X-aws-ec2-metadata-token-ttl-seconds`.
    pub token_ttl: Option<&'a str>,
    /// Whether the request has `X-Forwarded-For`: an open proxy must not get a token.
    pub forwarded: bool,
}

impl<'a> GuestRequest<'a> {
    /// A plain GET.
    pub fn get(target: &'a str) -> Self {
        Self {
            method: Method::Get,
            target,
            token: None,
            token_ttl: None,
            forwarded: false,
        }
    }
}

/// An answer. `Debug` does not print the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body. Present for HEAD as well, so that the length is known; the server omits it then.
    pub body: Cow<'a, str>,
    /// The value of `X-aws-ec2-metadata-token-ttl-seconds` with a token.
    pub token_ttl: Option<u32>,
    /// The value of `Allow` with status 405.
    pub allow: Option<&'static str>,
}

impl fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("content_type", &self.content_type)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl<'a> Answer<'a> {
    fn found(content_type: &'static str, body: impl Into<Cow<'a, str>>) -> Self {
        Self {
            status: 200,
            content_type,
            body: body.into(),
            token_ttl: None,
            allow: None,
        }
    }

    /// An answer with a status and its reason phrase, without data of a guest.
    pub fn refusal(status: u16) -> Self {
        let phrase = match status {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            413 => "Content Too Large",
            415 => "Unsupported Media Type",
            429 => "Too Many Requests",
            _ => "Error",
        };
        Self {
            status,
            ..Self::found(TEXT, phrase)
        }
    }

    /// Status 405, with the methods that the path supports.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::refusal(405)
        }
    }
}

/// The path of a request target, without scheme, host, query and fragment.
pub fn path_of(target: &str) -> &str {
    let scheme = ["http://", "https://"].into_iter().find(|scheme| {
        target
            .get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    let path = match scheme {
        Some(scheme) => {
            let rest = target.get(scheme.len()..).unwrap_or_default();
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            rest.get(end..).unwrap_or_default()
        }
        None => target,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if path.is_empty() { "/" } else { path }
}

impl Documents {
    /// Answers a request of the guest of these documents. `now` is in Unix seconds.
    pub fn answer(&self, request: &GuestRequest<'_>, tokens: &Tokens, now: u64) -> Answer<'_> {
        let path = path_of(request.target);
        if !path.starts_with('/') {
            return Answer::refusal(400);
        }
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        let Some(first) = segments.next() else {
            return read(request, || Some(Answer::found(TEXT, EC2_VERSIONS)));
        };
        let rest: Vec<&str> = segments.collect();
        let slash = path.ends_with('/');
        if first == "openstack" {
            read(request, || self.openstack(&rest, slash))
        } else if first == "nocloud" {
            read(request, || {
                self.leaf_or_listing(&self.nocloud, &rest, slash)
            })
        } else if first == LATEST && rest == ["api", "token"] {
            self.token(request, tokens, now)
        } else if is_ec2_version(first) {
            // Only EC2's tree uses tokens.
            if let Some(token) = request.token
                && !tokens.holds(token, self.instance, now)
            {
                return Answer::refusal(401);
            }
            // AWS SDKs append a slash to a document (placement/availability-zone/), and AWS answers.
            read(request, || self.leaf_or_listing(&self.ec2, &rest, false))
        } else {
            read(request, || None)
        }
    }

    fn openstack(&self, rest: &[&str], slash: bool) -> Option<Answer<'_>> {
        match rest.split_first() {
            None => Some(Answer::found(TEXT, OPENSTACK_VERSIONS.join("\n"))),
            Some((version, below)) if OPENSTACK_VERSIONS.contains(version) => {
                self.leaf_or_listing(&self.openstack, below, slash)
            }
            Some(_) => None,
        }
    }

    fn leaf_or_listing<'a>(
        &'a self,
        tree: &'a Tree,
        segments: &[&str],
        slash: bool,
    ) -> Option<Answer<'a>> {
        let path = segments.join("/");
        match tree.get(&path) {
            Some(Leaf::Listing(text)) => Some(Answer::found(TEXT, text.expose().as_str())),
            // A document with a slash at the end is another path, which does not exist.
            Some(_) if slash => None,
            Some(Leaf::Text(text)) => Some(Answer::found(TEXT, text.expose().as_str())),
            Some(Leaf::Json(text)) => Some(Answer::found(JSON, text.expose().as_str())),
            Some(Leaf::UserData) => {
                // Without user-data, only NoCloud's tree has this document.
                Some(Answer::found(BYTES, self.user_data().unwrap_or_default()))
            }
            None => listing(tree, &path).map(|names| Answer::found(TEXT, names)),
        }
    }

    /// EC2's session token (IMDSv2): `PUT /latest/api/token` with its validity in seconds.
    fn token(&self, request: &GuestRequest<'_>, tokens: &Tokens, now: u64) -> Answer<'_> {
        if request.method != Method::Put {
            return Answer::method_not_allowed("PUT");
        }
        if request.forwarded {
            return Answer::refusal(403);
        }
        let ttl = request
            .token_ttl
            .and_then(|text| text.trim().parse::<u32>().ok())
            .filter(|ttl| (1..=TTL_MAX).contains(ttl));
        match ttl {
            Some(ttl) => Answer {
                token_ttl: Some(ttl),
                ..Answer::found(TEXT, tokens.issue(self.instance, now, ttl))
            },
            None => Answer::refusal(400),
        }
    }
}

fn read<'a>(
    request: &GuestRequest<'_>,
    document: impl FnOnce() -> Option<Answer<'a>>,
) -> Answer<'a> {
    match request.method {
        Method::Get | Method::Head => document().unwrap_or_else(|| Answer::refusal(404)),
        Method::Put | Method::Other => Answer::method_not_allowed("GET, HEAD"),
    }
}

/// Whether a version is `latest`, `1.0` or a date: clients of EC2 request the version that they were written for.
fn is_ec2_version(segment: &str) -> bool {
    let digits = |range| {
        segment
            .get(range)
            .is_some_and(|part: &str| part.bytes().all(|b| b.is_ascii_digit()))
    };
    let dashes = segment.get(4..5) == Some("-") && segment.get(7..8) == Some("-");
    segment == LATEST
        || segment == "1.0"
        || (segment.len() == 10 && dashes && digits(0..4) && digits(5..7) && digits(8..10))
}

/// The children of a directory, one per line, directories with a slash; `None` if it does not exist.
fn listing(tree: &Tree, directory: &str) -> Option<String> {
    let mut names: Vec<String> = Vec::new();
    for (path, leaf) in tree {
        let below = if directory.is_empty() {
            Some(path.as_str())
        } else {
            path.strip_prefix(directory)
                .and_then(|rest| rest.strip_prefix('/'))
        };
        let Some(below) = below else { continue };
        let name = match (below.split_once('/'), leaf) {
            (Some((child, _)), _) => format!("{child}/"),
            (None, Leaf::Listing(_)) => format!("{below}/"),
            (None, _) => below.to_owned(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    (!names.is_empty()).then(|| names.join("\n"))
}
