//! What a guest's request is answered with: a pure function of its own documents.

use std::{borrow::Cow, fmt};

/// The methods that make a difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Read a document.
    Get,
    /// Read its head.
    Head,
    /// Only for EC2's session token.
    Put,
    /// Anything else is refused.
    Other,
}

/// The parts of a guest's request that an answer may depend on. Who asks is not among them: that is known already.
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
    /// Whether there is an `X-Forwarded-For`: somebody's open proxy asks, and must not get a token.
    pub forwarded: bool,
}

/// An answer. `Debug` does not show the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body; for HEAD too, so that the length is known. The server leaves it out then.
    pub body: Cow<'a, str>,
    /// Seconds for `X-aws-ec2-metadata-token-ttl-seconds`, beside a token.
    pub token_ttl: Option<u32>,
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
