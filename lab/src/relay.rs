//! The relay: forwards a loopback port of the host to waifud in the network namespace of its machine.
//!
//! waifud listens on its machine's loopback, which is not reachable from outside. The guard accepts connections on the
//! host's loopback and opens the second half of each in the node's namespace. A socket stays in the namespace in
//! which it was created, so only the thread that creates it enters the namespace. Bytes are forwarded unchanged: TLS
//! ends at waifud.
//!
//! [`forward`] does the same within one namespace, for machines that cannot reach each other directly.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use crate::wait;

/// The file in the lab's directory that contains the host's port, in decimal.
const PORT: &str = "relay.port";
/// waifud's default address inside the node.
const WAIFUD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7373);
/// Short, because both ends are on this host.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Limit of simultaneous connections; more are closed. Each uses two threads.
const CONNECTIONS_MAX: usize = 64;

/// The relay of a lab. Its threads end with the guard.
pub(crate) struct Relay {
    /// The network namespace of waifud's machine, unless that is off.
    namespace: Namespace,
}

type Namespace = Arc<Mutex<Option<Arc<File>>>>;

impl Relay {
    /// Starts the relay. It refuses connections until [`Relay::lead_to`].
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("cannot listen on a port for the relay")?;
        let port = listener.local_addr()?.port();
        let namespace = Namespace::default();
        let held = Arc::clone(&namespace);
        thread::Builder::new()
            .name("relay".into())
            .spawn(move || accept(&listener, &held))?;
        // Replaced by a rename, so that readers never see an incomplete file.
        let new = dir.join("relay.port.new");
        fs::write(&new, port.to_string())?;
        fs::rename(new, dir.join(PORT)).context("cannot store the relay's port")?;
        Ok(Self { namespace })
    }

    /// Sets the init of waifud's machine, or none while that is off.
    pub(crate) fn lead_to(&self, init: Option<Pid>) -> Result<()> {
        let file = match init {
            Some(init) => Some(Arc::new(
                File::open(format!("/proc/{init}/ns/net"))
                    .context("cannot open the network namespace of waifud's machine")?,
            )),
            None => None,
        };
        *current(&self.namespace) = file;
        Ok(())
    }
}

fn current(namespace: &Namespace) -> MutexGuard<'_, Option<Arc<File>>> {
    namespace.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The host's port; `None` when no waifud runs in the lab.
pub(crate) fn port(dir: &Path) -> Result<Option<u16>> {
    match fs::read_to_string(dir.join(PORT)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => Ok(Some(text.context("cannot read the relay's port")?.parse()?)),
    }
}

fn accept(listener: &TcpListener, namespace: &Namespace) {
    let connections = Arc::new(());
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) => {
                eprintln!("relay: {error}");
                // All descriptors may be in use, and the next call would fail at once.
                wait::pause(Duration::from_millis(100));
                continue;
            }
        };
        let Some(inside) = current(namespace).clone() else {
            continue;
        };
        // This function holds one reference.
        if Arc::strong_count(&connections) > CONNECTIONS_MAX {
            continue;
        }
        let held = Arc::clone(&connections);
        let made = thread::Builder::new()
            .name("relay-connection".into())
            .spawn(move || {
                if let Err(error) = serve(client, &inside) {
                    eprintln!("relay: {error:#}");
                }
                drop(held);
            });
        if let Err(error) = made {
            eprintln!("relay: {error}");
        }
    }
}

/// Runs in its own thread, which never leaves the namespace.
fn serve(client: TcpStream, namespace: &File) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the node's network")?;
    let waifud =
        TcpStream::connect_timeout(&WAIFUD, CONNECT_LIMIT).context("waifud does not answer")?;
    join(client, waifud)
}

/// Listens on `from` in the network namespace and forwards connections to `to`, as reached from there, until this process
/// ends.
pub(crate) fn forward(namespace: File, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let (report, listening) = mpsc::channel();
    thread::Builder::new()
        .name("forward".into())
        .spawn(move || {
            let bound = setns(&namespace, CloneFlags::CLONE_NEWNET)
                .context("cannot enter the network namespace")
                .and_then(|()| {
                    TcpListener::bind(from).with_context(|| format!("cannot listen on {from}"))
                });
            let listener = match bound {
                Ok(listener) => listener,
                Err(error) => return drop(report.send(Err(error))),
            };
            let _caller_waits = report.send(Ok(()));
            loop {
                let client = match listener.accept() {
                    Ok((client, _)) => client,
                    Err(error) => {
                        eprintln!("forward: {error}");
                        wait::pause(Duration::from_millis(100));
                        continue;
                    }
                };
                // A new thread is in the namespace of the thread that starts it.
                let started = thread::Builder::new().spawn(move || {
                    TcpStream::connect_timeout(&to, CONNECT_LIMIT)
                        .map(|server| join(client, server))
                });
                if let Err(error) = started {
                    eprintln!("forward: {error}");
                }
            }
        })?;
    listening
        .recv()
        .context("the thread that forwards has ended")?
}

/// Forwards both directions until both have ended.
fn join(one: TcpStream, other: TcpStream) -> Result<()> {
    let (from, to) = (one.try_clone()?, other.try_clone()?);
    let there = thread::Builder::new().spawn(move || pass_on(from, to))?;
    pass_on(other, one);
    let _ = there.join();
    Ok(())
}

/// Forwards until `from` ends its direction or one side disconnects. The other direction may continue.
fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let passed = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    if passed.is_err() {
        // After an error, the other direction cannot continue either.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::unistd::Uid;

    use super::*;

    #[test]
    fn connections_are_forwarded_in_a_namespace_and_an_address_in_use_is_an_error() {
        if !Uid::effective().is_root() {
            waifud_kit::testing::skip("only root enters a namespace");
            return;
        }
        let own = || File::open("/proc/self/ns/net").unwrap();
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = server.local_addr().unwrap();
        let error = forward(own(), to, to).unwrap_err();
        assert!(error.to_string().contains(&to.to_string()), "{error}");
        // In 127.0.0.0/8, but not an address that others use.
        let from = SocketAddr::from((Ipv4Addr::new(127, 7, 3, 73), to.port()));
        forward(own(), from, to).unwrap();
        let mut client = TcpStream::connect(from).unwrap();
        client.write_all(b"ask").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut asked = String::new();
        let (mut inside, _) = server.accept().unwrap();
        inside.read_to_string(&mut asked).unwrap();
        assert_eq!(asked, "ask");
    }

    #[test]
    fn both_directions_are_forwarded_to_their_ends() {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (front, back) = (listen(), listen());
        let mut client = TcpStream::connect(front.local_addr().unwrap()).unwrap();
        let accepted = front.accept().unwrap().0;
        let inner = TcpStream::connect(back.local_addr().unwrap()).unwrap();
        let mut server = back.accept().unwrap().0;
        let relay = thread::spawn(move || join(accepted, inner));

        client.write_all(b"ask").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).unwrap();
        server.write_all(b"answer").unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!((asked.as_str(), answer.as_str()), ("ask", "answer"));
        relay.join().unwrap().unwrap();
    }
}
