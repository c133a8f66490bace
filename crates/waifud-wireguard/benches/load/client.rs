//! One HTTP/1.1 connection from a chosen source address. Supports only what the load needs: GET and PUT, and bodies
//! with a length.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// The maximum size of an answer's head in bytes.
const HEAD: usize = 16 << 10;

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Received bytes that are not parsed yet.
    buffer: Vec<u8>,
}

impl Client {
    /// Connects from any port of `source`.
    pub async fn connect(source: Ipv4Addr, target: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        bind_address_only(&socket);
        socket.bind(SocketAddr::from((source, 0)))?;
        let stream = socket.connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(4096),
        })
    }

    /// Requests a path and reads the complete answer.
    pub async fn get(&mut self, path: &str, headers: &[String], keep: bool) -> io::Result<Answer> {
        self.request("GET", path, headers, keep, b"").await
    }

    /// Sends one request and reads the complete answer.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[String],
        keep: bool,
        body: &[u8],
    ) -> io::Result<Answer> {
        let close = if keep { "" } else { "connection: close\r\n" };
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: 169.254.169.254\r\n{close}{length}");
        for header in headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).await?;
        self.answer().await
    }

    async fn answer(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = self
                .buffer
                .windows(4)
                .position(|bytes| bytes == b"\r\n\r\n")
            {
                break at;
            }
            if self.buffer.len() > HEAD {
                return Err(bad("the head is too long"));
            }
            self.fill().await?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| bad("no status"))?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|value| value.trim().parse::<usize>().ok())
            .ok_or_else(|| bad("no length"))?;
        self.buffer.drain(..end + 4);
        while self.buffer.len() < length {
            self.fill().await?;
        }
        let rest = self.buffer.split_off(length);
        Ok(Answer {
            status,
            body: std::mem::replace(&mut self.buffer, rest),
        })
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// Lets the kernel choose the port when it connects, so that one address can have many connections in TIME-WAIT.
fn bind_address_only(socket: &TcpSocket) {
    let _ = nix::sys::socket::setsockopt(
        socket,
        nix::sys::socket::sockopt::IpBindAddressNoPort,
        &true,
    );
}
