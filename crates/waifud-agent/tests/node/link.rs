//! The real link to waifud, tested with fixed HTTP answers on a socket.

use std::path::PathBuf;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use waifud_agent::interfaces::{ControlLink, Destination, HttpLink, LinkError};
use waifud_api::agent_client::AgentClient;
use waifud_kit::testing::temp_path;
use waifud_types::Digest;

/// Answers successive connections with these bytes, and returns the headers of the requests.
fn serve(
    answers: Vec<&'static str>,
) -> (
    PathBuf,
    tokio::task::JoinHandle<Vec<String>>,
    tempfile::TempDir,
) {
    let (dir, socket) = temp_path("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let task = tokio::spawn(async move {
        let mut heads = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            heads.push(String::from_utf8(head).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        heads
    });
    (socket, task, dir)
}

async fn fetch(
    answers: Vec<&'static str>,
    have: &str,
) -> (Result<(), LinkError>, String, Vec<String>, Vec<u64>) {
    let (socket, task, dir) = serve(answers);
    let link = HttpLink::new(AgentClient::unix(socket));
    let to = dir.path().join("image.part");
    if !have.is_empty() {
        std::fs::write(&to, have).unwrap();
    }
    let progress = Mutex::new(Vec::new());
    let destination = Destination {
        file: &to,
        progress: &|bytes| progress.lock().unwrap().push(bytes),
    };
    let outcome = link
        .fetch_image(Digest::from_bytes([1; 32]), destination)
        .await;
    let text = std::fs::read_to_string(&to).unwrap_or_default();
    let heads = task.await.unwrap();
    (outcome, text, heads, progress.into_inner().unwrap())
}

/// A download that succeeds.
async fn fetch_complete(answers: Vec<&'static str>, have: &str) -> (String, Vec<String>, Vec<u64>) {
    let (outcome, text, heads, progress) = fetch(answers, have).await;
    outcome.unwrap();
    (text, heads, progress)
}

#[tokio::test]
async fn an_image_is_written_completely_and_progress_is_reported() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabcdef";
    let (text, heads, progress) = fetch_complete(vec![answer], "").await;
    assert_eq!(text, "abcdef");
    assert!(!heads[0].contains("range"));
    assert_eq!(progress.last(), Some(&6));
}

#[tokio::test]
async fn an_interrupted_download_is_resumed_if_possible_and_restarted_otherwise() {
    let partial = "HTTP/1.1 206 Partial Content\r\ncontent-length: 3\r\n\r\ndef";
    let (text, heads, _) = fetch_complete(vec![partial], "abc").await;
    assert_eq!(text, "abcdef");
    assert!(heads[0].contains("range: bytes=3-"));

    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabcdef";
    let (text, ..) = fetch_complete(vec![whole], "xyz-longer-than-it").await;
    assert_eq!(text, "abcdef");

    let beyond = "HTTP/1.1 416 Range Not Satisfiable\r\ncontent-length: 0\r\n\r\n";
    let (text, heads, _) = fetch_complete(vec![beyond, whole], "xyz-longer-than-it").await;
    assert_eq!(text, "abcdef");
    assert_eq!(heads.len(), 2);
}

#[tokio::test]
async fn an_incomplete_download_is_an_error_and_its_data_is_kept() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc";
    let (outcome, text, ..) = fetch(vec![cut], "").await;
    assert!(matches!(outcome, Err(LinkError::Unreachable { .. })));
    assert_eq!(text, "abc");
}
