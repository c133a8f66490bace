//! A mirror on loopback that serves files with `ETag`s and ranges, and misbehaves as a test scripts it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A scripted answer to one request.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    /// This many bytes of the body, then a closed connection.
    Cut(usize),
    /// This many bytes of the body, then nothing until `release`, then a closed connection.
    Stall(usize),
    /// A status without a body.
    Status(u16),
    /// The body, a byte every 2 ms.
    Drip,
}

impl Reply {
    pub fn cut(bytes: usize) -> Self {
        Self::Cut(bytes)
    }

    pub fn stall(bytes: usize) -> Self {
        Self::Stall(bytes)
    }

    pub fn status(code: u16) -> Self {
        Self::Status(code)
    }
}

#[derive(Default)]
struct File {
    body: Vec<u8>,
    version: u32,
    next: Option<Vec<u8>>,
    redirect: Option<String>,
    chunked: bool,
    script: VecDeque<Reply>,
    requests: Vec<String>,
    sent: usize,
}

#[derive(Default)]
struct State {
    files: Mutex<HashMap<String, File>>,
    moved: Notify,
    released: tokio_util::sync::CancellationToken,
}

pub struct Mirror {
    base: String,
    state: Arc<State>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Mirror {
    pub async fn serve(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&shared);
                // An error of one connection does not end the mirror.
                tokio::spawn(async move { answer(stream, &state).await.ok() });
            }
        });
        let mirror = Self {
            base,
            state,
            server,
        };
        for (path, body) in files {
            mirror.put(path, body);
        }
        mirror
    }

    fn with<T>(&self, path: &str, change: impl FnOnce(&mut File) -> T) -> T {
        let mut files = self.state.files.lock().unwrap();
        change(files.entry(path.to_owned()).or_default())
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub fn put(&self, path: &str, body: &[u8]) {
        self.with(path, |file| {
            file.body = body.to_vec();
            file.version += 1;
        });
    }

    pub fn text(&self, path: &str, body: &str) {
        self.put(path, body.as_bytes());
    }

    pub fn redirect(&self, path: &str, to: &str) {
        self.with(path, |file| file.redirect = Some(to.to_owned()));
    }

    /// Serves this file with chunked encoding, without a length.
    pub fn chunked(&self, path: &str) {
        self.with(path, |file| file.chunked = true);
    }

    /// Scripts the answers to the next requests. Later ones get the file.
    pub fn script(&self, path: &str, replies: Vec<Reply>) {
        self.with(path, |file| file.script = replies.into());
    }

    /// Replaces the file after the last scripted answer.
    pub fn then_serves(&self, path: &str, body: &[u8]) {
        self.with(path, |file| file.next = Some(body.to_vec()));
    }

    /// The heads of all requests so far, in lower case.
    pub fn requests(&self, path: &str) -> Vec<String> {
        self.with(path, |file| file.requests.clone())
    }

    /// How many bytes of bodies were sent.
    pub fn sent(&self, path: &str) -> usize {
        self.with(path, |file| file.sent)
    }

    pub async fn until_sent(&self, path: &str, bytes: usize) {
        let wait = async {
            loop {
                let moved = self.state.moved.notified();
                if self.sent(path) >= bytes {
                    return;
                }
                moved.await;
            }
        };
        tokio::time::timeout(crate::common::DEADLINE, wait)
            .await
            .unwrap();
    }

    /// Ends every stall.
    pub fn release(&self) {
        self.state.released.cancel();
    }
}

#[derive(Default)]
struct Plan {
    head: String,
    body: Vec<u8>,
    stall: bool,
    drip: bool,
}

async fn answer(stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while stream.read_line(&mut head).await? > 2 {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let plan = {
        let mut files = state.files.lock().unwrap();
        files
            .get_mut(&path)
            .map_or_else(not_found, |file| plan(file, &head))
    };
    stream.write_all(plan.head.as_bytes()).await?;
    if plan.drip {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(2));
        for byte in &plan.body {
            tick.tick().await;
            stream.write_all(&[*byte]).await?;
            stream.flush().await?;
        }
    } else {
        stream.write_all(&plan.body).await?;
    }
    stream.flush().await?;
    if let Some(file) = state.files.lock().unwrap().get_mut(&path) {
        file.sent += plan.body.len();
    }
    state.moved.notify_waiters();
    if plan.stall {
        // Until the client disconnects or the test releases the stall.
        let mut rest = String::new();
        tokio::select! {
            () = state.released.cancelled() => {}
            _ = stream.read_line(&mut rest) => {}
        }
    }
    stream.shutdown().await
}

fn not_found() -> Plan {
    Plan {
        head: "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        ..Plan::default()
    }
}

fn plan(file: &mut File, head: &str) -> Plan {
    let head = head.to_ascii_lowercase();
    file.requests.push(head.clone());
    let close = "connection: close\r\n\r\n";
    if let Some(to) = &file.redirect {
        return Plan {
            head: format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n{close}"),
            ..Plan::default()
        };
    }
    let reply = file.script.pop_front();
    if let Some(Reply::Status(code)) = reply {
        return Plan {
            head: format!("HTTP/1.1 {code} Scripted\r\ncontent-length: 0\r\n{close}"),
            ..Plan::default()
        };
    }
    if file.body.is_empty() {
        return not_found();
    }
    let value = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let etag = format!("\"{}\"", file.version);
    let from = value("range: bytes=")
        .filter(|_| value("if-range:").is_none_or(|wanted| wanted == etag))
        .and_then(|range| range.trim_end_matches('-').parse::<usize>().ok())
        .unwrap_or(0);
    let total = file.body.len();
    let mut body = file.body[from..].to_vec();
    let mut lines = if from > 0 {
        format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{total}\r\n",
            total - 1
        )
    } else {
        "HTTP/1.1 200 OK\r\n".to_owned()
    };
    lines = format!("{lines}etag: {etag}\r\n");
    if file.chunked {
        lines.push_str("transfer-encoding: chunked\r\n");
        let size = format!("{:x}\r\n", body.len());
        body = [size.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    } else {
        lines = format!("{lines}content-length: {}\r\n", body.len());
    }
    let mut stall = false;
    let drip = matches!(reply, Some(Reply::Drip));
    match reply {
        Some(Reply::Cut(bytes)) => body.truncate(bytes),
        Some(Reply::Stall(bytes)) => {
            body.truncate(bytes);
            stall = true;
        }
        _ => {}
    }
    if file.script.is_empty()
        && let Some(next) = file.next.take()
    {
        file.body = next;
        file.version += 1;
    }
    Plan {
        head: format!("{lines}{close}"),
        body,
        stall,
        drip,
    }
}
