//! The agent client against a fake waifud whose responses each test sets.

use super::*;
use std::convert::Infallible;

use futures::StreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use tokio::net::UnixListener;
use waifud_types::InstanceId;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;
type Seen = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// Chunks of a body; the body does not end after the last one if `open`.
fn pieces(pieces: Vec<&'static [u8]>, open: bool) -> Body {
    let frames =
        futures::stream::iter(pieces).map(|piece| Ok(Frame::data(Bytes::from_static(piece))));
    let rest = futures::stream::pending().take(usize::from(open));
    BodyExt::boxed_unsync(StreamBody::new(frames.chain(rest)))
}

/// A fake waifud that answers every request in the same way and records path and range.
fn serve(
    answer: impl Fn(&str, Option<&str>) -> Response<Body> + Send + Sync + 'static,
) -> (AgentClient, Seen, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let seen = Seen::default();
    let (noted, answer) = (seen.clone(), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (noted, answer) = (noted.clone(), answer.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let header = |name: &str| {
                    let value = request.headers().get(name)?;
                    Some(value.to_str().unwrap().to_owned())
                };
                let range = header("range");
                let response = answer(request.uri().path(), range.as_deref());
                let path = request.uri().to_string();
                noted.lock().unwrap().push((path, range));
                async move { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (AgentClient::unix(socket), seen, dir)
}

#[tokio::test]
async fn small_requests_share_a_connection_and_one_that_broke_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = connections.clone();
    let (cut, mut cuts) = tokio::sync::mpsc::unbounded_channel::<()>();
    let (gone, mut goes) = tokio::sync::mpsc::unbounded_channel::<()>();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let service = service_fn(|_: Request<Incoming>| async {
                let mut response = Response::new(pieces(vec![], false));
                *response.status_mut() = StatusCode::NO_CONTENT;
                Ok::<_, Infallible>(response)
            });
            let connection = server::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                _ = cuts.recv() => {}
            }
            gone.send(()).unwrap();
        }
    });
    let client = AgentClient::unix(socket);
    let made = || connections.load(std::sync::atomic::Ordering::SeqCst);
    for _ in 0..5 {
        client.report(&AgentReport::default()).await.unwrap();
    }
    assert_eq!(made(), 1);
    cut.send(()).unwrap();
    goes.recv().await.unwrap();
    client.report(&AgentReport::default()).await.unwrap();
    assert_eq!(made(), 2);
}

#[tokio::test]
async fn frames_arrive_however_the_bytes_are_cut_and_unknown_kinds_are_skipped() {
    let (client, seen, _dir) = serve(|_, _| {
        Response::new(pieces(
            vec![
                b"{\"type\":\"pi",
                b"ng\"}\n\n{\"type\":\"stream\",\"id\":3}\n{\"type\":\"sync\",\"revision\":\"000000",
                b"ab.7\"}\n{\"type\":\"ping\"}\n",
            ],
            false,
        ))
    });
    let start = WatchStart {
        since: Some("000000ab.5".parse().unwrap()),
        names: Some("000000ab.9".parse().unwrap()),
    };
    let mut watch = client.watch(start).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), Some(WatchFrame::Ping));
    let revision = "000000ab.7".parse().unwrap();
    assert_eq!(
        watch.next().await.unwrap(),
        Some(WatchFrame::Sync { revision })
    );
    assert_eq!(watch.next().await.unwrap(), Some(WatchFrame::Ping));
    assert_eq!(watch.next().await.unwrap(), None);
    assert_eq!(
        seen.lock().unwrap()[0].0,
        "/v1/agent/watch?since=000000ab.5"
    );
}

#[track_caller]
fn is_unexpected(frame: &Result<Option<WatchFrame>, AgentClientError>) {
    let unexpected = matches!(frame, Err(AgentClientError::Unexpected { .. }));
    assert!(unexpected, "{frame:?}");
}

#[tokio::test]
async fn objects_of_unknown_kinds_are_ignored_and_malformed_known_ones_are_errors() {
    let (client, _, _dir) = serve(|_, _| {
        Response::new(pieces(
            vec![
                b"{\"type\":\"put\",\"revision\":\"000000ab.5\",\"object\":{\"kind\":\"route\",\"to\":7}}\n",
                b"{\"type\":\"delete\",\"revision\":\"000000ab.6\",\"kind\":\"route\",\"id\":[1]}\n",
                b"{\"type\":\"delete\",\"revision\":\"000000ab.6\",\"kind\":\"route\",\"id\":\"10.0.0.0/8\"}\n",
                b"{\"type\":\"ping\"}\n",
                b"{\"type\":\"put\",\"revision\":\"000000ab.7\",\"object\":{\"kind\":\"peer\",\"id\":7}}\n",
            ],
            false,
        ))
    });
    let mut watch = client.watch(WatchStart::default()).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), Some(WatchFrame::Ping));
    assert_eq!(watch.ignored, BTreeSet::from(["route".to_owned()]));
    is_unexpected(&watch.next().await);
}

#[tokio::test]
async fn an_open_watch_gives_its_frames_at_once_and_a_broken_line_is_an_error() {
    let (client, _, _dir) = serve(|_, _| {
        Response::new(pieces(
            vec![b"{\"type\":\"ping\"}\n{\"type\":\"sync\"}\n"],
            true,
        ))
    });
    let mut watch = client.watch(WatchStart::default()).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), Some(WatchFrame::Ping));
    is_unexpected(&watch.next().await);
}

#[tokio::test]
async fn a_trimmed_history_is_distinguished_from_other_problems() {
    let (client, _, _dir) = serve(|_, _| {
        let problem = Problem::new(410, "history-trimmed", "gone");
        let text = serde_json::to_vec(&problem).unwrap();
        let mut response = Response::new(pieces(vec![text.leak()], false));
        *response.status_mut() = StatusCode::GONE;
        response
    });
    let error = client.watch(WatchStart::default()).await.unwrap_err();
    assert!(error.is_gone(), "{error}");
}

#[tokio::test]
async fn an_image_is_resumed_where_waifud_can() {
    let (client, seen, _dir) = serve(|_, range| {
        let mut response = Response::new(pieces(vec![b"abc", b"def"], false));
        if range.is_some() {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        response
    });
    let image = Digest::from_bytes([1; 32]);
    let mut whole = client.image(image, 0).await.unwrap();
    assert_eq!(whole.from(), 0);
    assert_eq!(whole.chunk().await.unwrap().as_deref(), Some(&b"abc"[..]));
    assert_eq!(whole.chunk().await.unwrap().as_deref(), Some(&b"def"[..]));
    assert_eq!(whole.chunk().await.unwrap(), None);
    let rest = client.image(image, 9).await.unwrap();
    assert_eq!(rest.from(), 9);
    assert_eq!(seen.lock().unwrap()[1].1.as_deref(), Some("bytes=9-"));
}

#[tokio::test]
async fn a_bundle_with_other_bytes_is_refused() {
    let (client, _, _dir) = serve(|_, _| Response::new(pieces(vec![b"sealed"], false)));
    let bytes = client.bundle(Digest::of(b"sealed")).await.unwrap();
    assert_eq!(&bytes[..], b"sealed");
    assert!(matches!(
        client.bundle(Digest::of(b"other")).await,
        Err(AgentClientError::DigestMismatch { .. })
    ));
}

#[tokio::test]
async fn a_waifud_that_is_not_there_or_silent_is_an_error_in_time() {
    let client = AgentClient::unix("/nonexistent/agent.sock".into());
    let error = client.watch(WatchStart::default()).await.unwrap_err();
    assert!(matches!(error, AgentClientError::Unreachable { .. }));

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let client = AgentClient::unix(socket).with_timeout(Duration::from_millis(20));
    let error = client.report(&AgentReport::default()).await.unwrap_err();
    assert!(matches!(error, AgentClientError::Timeout { .. }), "{error}");
}

#[test]
fn frames_of_a_newer_waifud_are_distinguished_from_invalid_ones() {
    let unknown = |line: &str| unknown_kind(line.as_bytes());
    assert_eq!(
        unknown(r#"{"type":"stream","id":1}"#).as_deref(),
        Some("stream")
    );
    assert_eq!(
        unknown(r#"{"type":"put","revision":"000000ab.1","object":{"kind":"route"}}"#).as_deref(),
        Some("route")
    );
    assert_eq!(unknown(r#"{"type":"sync"}"#), None);
    assert_eq!(
        unknown(r#"{"type":"put","object":{"kind":"instance"}}"#),
        None
    );
    assert_eq!(unknown("{"), None);
    let id = InstanceId::generate();
    let line = format!(r#"{{"type":"delete","revision":"000000ab.1","instance":"{id}"}}"#);
    assert!(serde_json::from_str::<WatchFrame>(&line).is_ok());
}

#[test]
fn a_malformed_frame_of_a_known_kind_is_an_error_and_only_unknown_kinds_are_ignored() {
    for malformed in [
        r#"{"type": "put", "object": {"kind": "instance"}}"#,
        r#"{"type": "delete", "kind": "peer"}"#,
        r#"{"type": "tombstone", "tombstone": {}}"#,
        r#"{"type": "release", "release": {"instance": 1}}"#,
        r#"{"type": "sync"}"#,
        r#"{"kind": "instance"}"#,
        r#"{"type": "release""#,
    ] {
        let parsed = serde_json::from_str::<WatchFrame>(malformed);
        assert!(parsed.is_err(), "{malformed}");
        assert_eq!(unknown_kind(malformed.as_bytes()), None, "{malformed}");
    }
    for (newer, kind) in [
        (r#"{"type": "put", "object": {"kind": "volume"}}"#, "volume"),
        (r#"{"type": "delete", "kind": "volume"}"#, "volume"),
        (r#"{"type": "move", "instance": 1}"#, "move"),
    ] {
        let ignored = unknown_kind(newer.as_bytes());
        assert_eq!(ignored.as_deref(), Some(kind), "{newer}");
    }
}
