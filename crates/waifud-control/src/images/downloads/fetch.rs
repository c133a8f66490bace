//! One attempt to download a source: resume, verify, and classify failures.

use std::time::Duration;

use reqwest::header::{self, HeaderMap};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout_at};
use waifud_api::Problem;
use waifud_types::qcow2;
use waifud_types::{ByteSize, Checksum, ChecksumAlgorithm, Digest};

use super::config::Pace;
use super::limits::Limits;
use super::partial::Partial;
use super::source::{Proof, Source};
use super::{checksum_file, http, problems};
use crate::images::image_store::SPACE_CHECK_INTERVAL;

/// The maximum size of a list of checksums.
const LIST_MAX: usize = 4 << 20;
/// The maximum time to download a list of checksums.
const LIST_TIME: Duration = Duration::from_mins(1);

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Permanent: a retry would fail again.
    Permanent(Problem),
    /// Temporary: a retry may succeed.
    Temporary(String),
    /// No connection to the server, for example without internet access.
    NoConnection(String),
    /// The transfer is too slow.
    TooSlow(String),
    /// There is not enough free space.
    DiskFull,
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Temporary(format!("writing the image failed: {error}")),
        }
    }
}

/// Receives the progress of an attempt.
pub(super) trait Watcher: Send + Sync {
    /// Reports the received bytes and the total, if known.
    fn progress(&self, done: u64, total: Option<u64>);
}

/// The version of the file, as named by its server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Validator(pub Option<String>);

impl Validator {
    /// A strong ETag, otherwise the modification date (RFC 9110, section 8.8).
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let etag = text(header::ETAG).filter(|tag| tag.starts_with('"') && tag.len() <= 256);
        Self(
            etag.or_else(|| text(header::LAST_MODIFIED).filter(|date| date.len() <= 64))
                .map(str::to_owned),
        )
    }
}

/// The expected checksum of the image; `None` if the request skips the check.
pub(super) async fn expected(
    source: &Source,
    limits: &Limits,
) -> Result<Option<Checksum>, Failure> {
    match &source.proof {
        Proof::Given(checksum) => Ok(Some(checksum.clone())),
        Proof::HttpsAlone => Ok(None),
        Proof::Listed { url, name, for_one } => {
            let text = tokio::time::timeout(LIST_TIME, list(url, limits))
                .await
                .map_err(|_| {
                    Failure::TooSlow("downloading the list of checksums takes too long".to_owned())
                })?;
            let text = text?;
            checksum_file::find(&String::from_utf8_lossy(&text), name, *for_one)
                .map(Some)
                .map_err(|error| Failure::Permanent(problems::bad_list(url, &error.to_string())))
        }
    }
}

async fn list(url: &reqwest::Url, limits: &Limits) -> Result<Vec<u8>, Failure> {
    let client = client(url, false, limits)?;
    let response = client.get(url.clone()).send().await.map_err(transport)?;
    let mut response = usable(response, "the list of checksums")?;
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        text.extend_from_slice(&chunk);
        if text.len() > LIST_MAX {
            return Err(Failure::Permanent(problems::bad_list(
                url,
                "it is too long",
            )));
        }
    }
    Ok(text)
}

/// Downloads the missing bytes. Afterwards the file is complete according to its server. `learned` is called with the
/// version before its first byte is stored.
pub(super) async fn fetch<L>(
    source: &Source,
    limits: &Limits,
    partial: &mut Partial,
    validator: &Validator,
    watcher: &dyn Watcher,
    learned: L,
) -> Result<(), Failure>
where
    L: AsyncFnOnce(Validator) -> Result<(), Failure>,
{
    let mut request = client(&source.url, source.proof != Proof::HttpsAlone, limits)?
        .get(source.url.clone())
        .header(header::ACCEPT_ENCODING, "identity");
    match &validator.0 {
        Some(version) if partial.length > 0 => {
            request = request
                .header(header::RANGE, format!("bytes={}-", partial.length))
                .header(header::IF_RANGE, version);
        }
        _ => partial.clear().await?,
    }
    let response = request.send().await.map_err(transport)?;
    if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && partial.length > 0 {
        return check_complete(partial, &response).await;
    }
    let mut response = usable(response, "the image")?;
    let resumed = response.status() == StatusCode::PARTIAL_CONTENT;
    let now = Validator::of(response.headers());
    if resumed {
        if range_begin(response.headers()) != Some(partial.length) || now != *validator {
            partial.clear().await?;
            return Err(Failure::Temporary(
                "the server sent another part or version; starting again".to_owned(),
            ));
        }
        partial.resumed = true;
    } else {
        partial.clear().await?;
        learned(now).await?;
    }
    let total = response
        .content_length()
        .map(|rest| rest.saturating_add(partial.length));
    if total.is_some_and(|total| total > limits.settings.image_max.bytes()) {
        return Err(Failure::Permanent(problems::too_large(
            limits.settings.image_max,
        )));
    }
    let rest = total.map_or(0, |total| total.saturating_sub(partial.length));
    limits.disk_space.check(rest)?;
    if !limits.trail.is_private() {
        watcher.progress(partial.length, total);
    }
    let outcome = stream(&mut response, limits, partial, total, watcher).await;
    // The received bytes are kept, even after a failure.
    partial.flush().await?;
    outcome?;
    if total.is_some_and(|total| partial.length < total) {
        return Err(Failure::Temporary(
            "the connection was closed early".to_owned(),
        ));
    }
    Ok(())
}

async fn stream(
    response: &mut Response,
    limits: &Limits,
    partial: &mut Partial,
    total: Option<u64>,
    watcher: &dyn Watcher,
) -> Result<(), Failure> {
    let mut next_check = partial.length;
    let mut header_checked = partial.head.len() == qcow2::HEADER_BYTES;
    let mut pace = Measured::new(limits.settings.downloads.pace, partial.received());
    while let Some(chunk) = next(response, &mut pace, partial.received()).await? {
        if partial.received().saturating_add(chunk.len() as u64) > limits.settings.image_max.bytes()
        {
            return Err(Failure::Permanent(problems::too_large(
                limits.settings.image_max,
            )));
        }
        if partial.received() >= next_check {
            next_check = partial.received() + SPACE_CHECK_INTERVAL;
            limits.disk_space.check(0)?;
        }
        partial.push(&chunk).await?;
        if !header_checked && partial.head.len() == qcow2::HEADER_BYTES {
            header_checked = true;
            qcow2::parse(&partial.head).map_err(|error| {
                Failure::Permanent(problems::invalid_image(&partial.head, &error))
            })?;
        }
        // For a private address, no progress is shown until the data is known to be an image.
        if header_checked || !limits.trail.is_private() {
            watcher.progress(partial.received(), total);
        }
    }
    Ok(())
}

/// The transfer rate within one time window.
struct Measured {
    pace: Pace,
    until: Instant,
    before: u64,
}

impl Measured {
    fn new(pace: Pace, received: u64) -> Self {
        Self {
            pace,
            until: Instant::now() + pace.window,
            before: received,
        }
    }

    /// Starts the next window; fails if too little arrived in the last one.
    fn next_window(&mut self, received: u64) -> Result<(), Failure> {
        if received.saturating_sub(self.before) < self.pace.bytes.bytes() {
            return Err(Failure::TooSlow(format!(
                "the server sends less than {} in {} s",
                self.pace.bytes,
                self.pace.window.as_secs().max(1)
            )));
        }
        *self = Self::new(self.pace, received);
        Ok(())
    }
}

/// The next chunk; fails if the transfer is too slow.
async fn next(
    response: &mut Response,
    pace: &mut Measured,
    received: u64,
) -> Result<Option<bytes::Bytes>, Failure> {
    loop {
        if Instant::now() >= pace.until {
            pace.next_window(received)?;
        }
        // Cancelling the wait for a chunk loses no data.
        if let Ok(chunk) = timeout_at(pace.until, response.chunk()).await {
            return chunk.map_err(transport);
        }
    }
}

/// The server has no further bytes: the file is complete, or it has changed.
async fn check_complete(partial: &mut Partial, response: &Response) -> Result<(), Failure> {
    let total = response
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.strip_prefix("bytes */"))
        .and_then(|text| text.parse().ok());
    if total == Some(partial.length) {
        return Ok(());
    }
    partial.clear().await?;
    Err(Failure::Temporary(
        "the file on the server has changed; starting again".to_owned(),
    ))
}

/// A file that was read back from the disk and matches the published checksum.
pub(super) struct Verified {
    pub(super) digest: Digest,
    pub(super) size: ByteSize,
    pub(super) header: qcow2::Qcow2Header,
}

/// Syncs the file, reads it back and compares it with the published checksum. If parts of several answers do not match, they
/// are discarded and downloaded again once, so `Temporary` here means an immediate retry.
pub(super) async fn verify(
    partial: &mut Partial,
    expected: Option<&Checksum>,
) -> Result<Verified, Failure> {
    let with_sha512 =
        expected.is_some_and(|checksum| checksum.algorithm() == ChecksumAlgorithm::Sha512);
    let contents = partial.sync_and_read_back(with_sha512).await?;
    if let Some(expected) = expected {
        let actual = contents.checksum(expected.algorithm());
        if actual.as_ref() != Some(expected) {
            if partial.resumed {
                partial.clear().await?;
                return Err(Failure::Temporary(
                    "the parts do not match; starting again".to_owned(),
                ));
            }
            return Err(Failure::Permanent(problems::mismatch(
                expected,
                actual.as_ref(),
            )));
        }
    }
    let header = qcow2::parse(&contents.head)
        .map_err(|error| Failure::Permanent(problems::invalid_image(&contents.head, &error)))?;
    Ok(Verified {
        digest: contents.digest,
        size: ByteSize(contents.length),
        header,
    })
}

fn client(
    url: &reqwest::Url,
    http_allowed: bool,
    limits: &Limits,
) -> Result<reqwest::Client, Failure> {
    http::client(url, http_allowed, limits).map_err(|error| {
        Failure::Temporary(format!("creating a connection failed: {}", root(&error)))
    })
}

/// The response if it contains the requested data, otherwise the failure.
fn usable(response: Response, what: &str) -> Result<Response, Failure> {
    let status = response.status();
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok(response);
    }
    let later = status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        );
    Err(if later {
        Failure::Temporary(format!(
            "the server answered with status {}",
            status.as_u16()
        ))
    } else {
        Failure::Permanent(problems::source_refused(
            response.url(),
            status.as_u16(),
            what,
        ))
    })
}

fn range_begin(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (begin, _) = text.strip_prefix("bytes ")?.split_once('-')?;
    begin.parse().ok()
}

fn transport(error: reqwest::Error) -> Failure {
    if let Some(refused) = http::refusal(&error) {
        return Failure::Permanent(problems::refused(&refused));
    }
    let host = error
        .url()
        .and_then(|url| url.host_str())
        .map_or_else(|| "the server".to_owned(), str::to_owned);
    let error = error.without_url();
    if error.is_connect() {
        return Failure::NoConnection(if error.is_timeout() {
            format!("{host} did not answer within {} s", http::CONNECT.as_secs())
        } else {
            format!("connecting to {host} failed: {}", root(&error))
        });
    }
    Failure::Temporary(if error.is_timeout() {
        "the server sends nothing".to_owned()
    } else {
        format!("the connection failed: {}", root(&error))
    })
}

fn root(error: &dyn std::error::Error) -> String {
    waifud_kit::error::root_cause(error)
        .chars()
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_strong_validators_are_used() {
        let of = |pairs: &[(header::HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(name.clone(), value.parse().unwrap());
            }
            Validator::of(&headers).0
        };
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(of(&[(header::ETAG, "\"a\"")]).as_deref(), Some("\"a\""));
        assert_eq!(of(&[(header::ETAG, "W/\"a\"")]), None);
        assert_eq!(
            of(&[(header::ETAG, "W/\"a\""), (header::LAST_MODIFIED, date)]).as_deref(),
            Some(date)
        );
        assert_eq!(of(&[]), None);
    }
}
