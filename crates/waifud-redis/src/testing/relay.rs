//! A way to Redis on which each answer takes a while.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How long a slow answer takes.
const SLOW: Duration = Duration::from_secs(5);

/// A relay. While it is slow, it holds each answer for five seconds.
pub struct SlowRelay {
    port: u16,
    slow: Arc<AtomicBool>,
    held: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl SlowRelay {
    /// Starts a fast relay to this port.
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let slow = Arc::new(AtomicBool::new(false));
        let held = Arc::new(AtomicUsize::new(0));
        let (is_slow, count) = (Arc::clone(&slow), Arc::clone(&held));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to))).await;
                if let Ok(server) = server {
                    tokio::spawn(relay(
                        client,
                        server,
                        Arc::clone(&is_slow),
                        Arc::clone(&count),
                    ));
                }
            }
        });
        Self {
            port,
            slow,
            held,
            task,
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Begins or ends to hold answers.
    pub fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::SeqCst);
    }

    /// How many answers it holds now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

impl Drop for SlowRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(
    client: TcpStream,
    server: TcpStream,
    slow: Arc<AtomicBool>,
    held: Arc<AtomicUsize>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = tokio::io::copy(&mut from_client, &mut to_server);
    let answers = async {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            if slow.load(Ordering::SeqCst) {
                held.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(SLOW).await;
                held.fetch_sub(1, Ordering::SeqCst);
            }
            to_client.write_all(&buffer[..read]).await?;
        }
    };
    // A client that closes its end still has an answer on its way.
    let _broken: (std::io::Result<u64>, std::io::Result<()>) = tokio::join!(requests, answers);
}
