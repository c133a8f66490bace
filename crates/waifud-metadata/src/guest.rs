//! Answers one request of a guest, which is identified by its address inside the tunnel alone.

use std::{borrow::Cow, net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Request, Response,
    body::Body,
    header::{self, HeaderName, HeaderValue},
};
use tokio::time::{Instant, timeout};
use waifud_api::metadatad::Observed;
use waifud_cloudinit::{Answer, GuestRequest, Method, PHONE_HOME_PATH, REPORT_PATH, path_of};

use crate::{
    MetadataService,
    cloud_init_event::{self, EVENT_MAX},
    phone_home::{harmless, parse},
    registry::Entry,
};

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORM: &str = "application/x-www-form-urlencoded";

/// How many characters of a path are kept in the log.
const PATH_MAX: usize = 200;

impl MetadataService {
    /// Answers a request that came through the tunnel from `source`. The source address alone identifies the instance:
    /// no header does. Only three headers of EC2's protocol are read.
    pub(crate) async fn answer_guest<B>(
        &self,
        source: Ipv4Addr,
        request: Request<B>,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data: Send> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if !self.limiter.allows(source, Instant::now()) {
            return response(&Answer::refusal(429), None);
        }
        let Some(entry) = self.registry.at(source) else {
            tracing::debug!(%source, "request from an unassigned address");
            return response(&Answer::refusal(404), None);
        };
        let (head, body) = request.into_parts();
        let target = head.uri.to_string();
        let path = path_of(&target);
        if let Some(post) = Post::at(path) {
            let answer = self.receive_post(post, &entry, &head, body).await;
            return response(&answer, None);
        }
        let guest = GuestRequest {
            method: match head.method {
                hyper::Method::GET => Method::Get,
                hyper::Method::HEAD => Method::Head,
                hyper::Method::PUT => Method::Put,
                _ => Method::Other,
            },
            target: &target,
            token: text(&head.headers, &TOKEN),
            token_ttl: text(&head.headers, &TOKEN_TTL),
            forwarded: head.headers.contains_key(FORWARDED_FOR),
        };
        let now = (self.clock)();
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let answer = entry.documents.answer(&guest, &self.tokens, seconds);
        tracing::debug!(instance = %entry.instance, status = answer.status, "answered");
        let request = Observed::Request {
            path: harmless(path, PATH_MAX),
            status: answer.status,
        };
        self.log.record(entry.instance, now, request);
        response(&answer, Some(&entry))
    }

    /// Receives a report of the guest about itself. The instance follows from the source address, never from the body.
    async fn receive_post<B>(
        &self,
        post: Post,
        entry: &Entry,
        head: &hyper::http::request::Parts,
        body: B,
    ) -> Answer<'static>
    where
        B: Body<Data: Send> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if head.method != hyper::Method::POST {
            return Answer::method_not_allowed("POST");
        }
        if post == Post::PhoneHome && !is_form(&head.headers) {
            return Answer::refusal(415);
        }
        let limit = match post {
            Post::PhoneHome => self.limits.body_bytes,
            Post::CloudInitEvent => EVENT_MAX,
        };
        let bytes = match self.read_body(body, limit).await {
            Ok(bytes) => bytes,
            Err(refusal) => return refusal,
        };
        match post {
            Post::PhoneHome => self.phone_home(entry, &bytes),
            Post::CloudInitEvent => self.cloud_init_event(entry, &bytes),
        }
        accepted()
    }

    /// Records that the guest's cloud-init has finished.
    fn phone_home(&self, entry: &Entry, body: &[u8]) {
        // Logged once: a guest can repeat the call and must not fill the host's log.
        if self.log.has_report(entry.instance) {
            tracing::debug!(instance = %entry.instance, "phoned home again");
        } else {
            tracing::info!(instance = %entry.instance, name = %entry.assignment.name, "phoned home");
        }
        self.log.record(entry.instance, (self.clock)(), parse(body));
    }

    /// Records an event of cloud-init's webhook reporter. The guest's boot waits for the answer, so the only work before
    /// it is a bounded entry in memory. A body that is not an event is dropped instead of refused, because cloud-init
    /// logs a warning in the guest for every refusal.
    fn cloud_init_event(&self, entry: &Entry, body: &[u8]) {
        if let Some(event) = cloud_init_event::parse(body) {
            let event = Observed::CloudInit(event);
            self.log.record(entry.instance, (self.clock)(), event);
        } else {
            tracing::debug!(instance = %entry.instance, "ignored a report that is not an event");
        }
    }

    /// A body of at most `limit` bytes, or the answer that refuses it.
    async fn read_body<B>(&self, body: B, limit: usize) -> Result<Bytes, Answer<'static>>
    where
        B: Body<Data: Send> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let body = Box::pin(Limited::new(body, limit).collect());
        match timeout(self.limits.body_timeout, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Answer::refusal(413)),
            Ok(Err(_)) => Err(Answer::refusal(400)),
            Err(_) => Err(Answer::refusal(408)),
        }
    }
}

/// A report that a guest posts about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Post {
    PhoneHome,
    CloudInitEvent,
}

impl Post {
    fn at(path: &str) -> Option<Self> {
        match path {
            PHONE_HOME_PATH => Some(Self::PhoneHome),
            REPORT_PATH => Some(Self::CloudInitEvent),
            _ => None,
        }
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    text(headers, &header::CONTENT_TYPE)
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case(FORM))
}

/// The answer to a report that was recorded.
fn accepted() -> Answer<'static> {
    Answer {
        status: 200,
        body: "ok\n".into(),
        ..Answer::refusal(200)
    }
}

/// The value of a header that occurs exactly once and is text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    // Repeated, or not text: treated as an invalid token, which is refused instead of ignored.
    if values.next().is_some() {
        return Some("");
    }
    Some(value.to_str().unwrap_or_default())
}

/// User-data on its way to a guest: keeps the documents that hold the text alive until it is sent.
struct UserData(Arc<Entry>);

impl AsRef<[u8]> for UserData {
    fn as_ref(&self) -> &[u8] {
        self.0.documents.user_data().unwrap_or_default().as_bytes()
    }
}

/// The bytes of an answer. User-data is shared, not copied: it may be 1 MiB, and a guest may request it on all of its
/// connections without reading any.
fn body(answer: &Answer<'_>, entry: Option<&Arc<Entry>>) -> Bytes {
    if let Cow::Borrowed(text) = answer.body
        && let Some(entry) = entry
        && let Some(own) = entry.documents.user_data()
        && std::ptr::eq(own, text)
    {
        return Bytes::from_owner(UserData(Arc::clone(entry)));
    }
    Bytes::copy_from_slice(answer.body.as_bytes())
}

fn response(answer: &Answer<'_>, entry: Option<&Arc<Entry>>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body(answer, entry)));
    *response.status_mut() = hyper::StatusCode::from_u16(answer.status)
        .unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(answer.content_type),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::SERVER, HeaderValue::from_static("waifud"));
    if let Some(ttl) = answer.token_ttl {
        headers.insert(TOKEN_TTL, HeaderValue::from(ttl));
    }
    if let Some(allow) = answer.allow {
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    match answer.status {
        // The unread rest of the body would be parsed as the next request.
        408 | 413 => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        429 => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}

#[cfg(test)]
mod tests {
    use waifud_api::{agent::BundleRef, metadatad::Assignment};
    use waifud_cloudinit::{Source, Tokens, VendorOptions, render};
    use waifud_types::{Digest, InstanceId, Secret};

    use super::*;

    fn entry() -> Arc<Entry> {
        let instance = InstanceId::generate();
        let documents = render(&Source {
            instance,
            instance_id: "i-1".to_owned(),
            hostname: "web".parse().unwrap(),
            domain: None,
            availability_zone: "alder".to_owned(),
            ssh_keys: Vec::new(),
            user_data: Some(Secret::new("#cloud-config\n".repeat(70_000))),
            vendor_data: VendorOptions::default(),
            datasource: waifud_types::template::Datasource::Openstack,
            nics: Vec::new(),
            default_user: None,
        });
        let assignment = Assignment {
            name: "web".parse().unwrap(),
            address: [10, 0, 0, 1].into(),
            bundle: BundleRef {
                digest: Digest::from_bytes([1; 32]),
                key: Secret::new("key".to_owned()),
                size_bytes: 3,
            },
        };
        Arc::new(Entry {
            instance,
            assignment,
            documents,
        })
    }

    #[test]
    fn user_data_is_shared_between_connections() {
        let (entry, tokens) = (entry(), Tokens::new(&[1; 32]));
        for path in ["/openstack/latest/user_data", "/latest/user-data"] {
            let answer = entry.documents.answer(&GuestRequest::get(path), &tokens, 0);
            let (one, other) = (body(&answer, Some(&entry)), body(&answer, Some(&entry)));
            assert_eq!(one, entry.documents.user_data().unwrap());
            assert_eq!(one.as_ptr(), other.as_ptr(), "{path} is copied");
        }
        let answer = entry.documents.answer(
            &GuestRequest::get("/latest/meta-data/instance-id"),
            &tokens,
            0,
        );
        assert_eq!(body(&answer, Some(&entry)), "i-1");
    }
}
