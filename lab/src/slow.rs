//! Passes the frames of a slow link from one port of the bridge to the other, late or not at all.
//!
//! The rules of [`crate::links`] keep the bridge from doing it. A thread in the network namespace of "outside" reads what
//! comes in at each of the two ports from a packet socket, and writes to the other port what is for a machine behind it: a
//! frame for everybody, or for an address that has been seen there.

use std::collections::HashSet;
use std::fs::File;
use std::io::{PipeWriter, Read};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

use crate::net;
use crate::orders::Link;
use crate::packets::{self, HEADER, Packets};
use crate::pipe::Pipe;
use crate::shape::Shape;

/// The addresses that are remembered for a port. More are not passed on to it.
const ADDRESSES_MAX: usize = 4096;
/// Frames that are read from a port before the other one gets its turn.
const BATCH: usize = 64;
/// Limit for the thread to open its sockets.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A hardware address.
type Address = [u8; 6];

/// A running relay. It ends when it is dropped.
pub(crate) struct Slow {
    /// Its end is closed to stop the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    /// Starts the relay of `link`, whose ends have these addresses, in the network namespace of "outside", whose init is
    /// `outside_pid`.
    pub(crate) fn start(
        link: &Link,
        addresses: [Address; 2],
        shape: Shape,
        outside_pid: i32,
    ) -> Result<Self> {
        let namespace = File::open(format!("/proc/{outside_pid}/ns/net"))
            .context("cannot open the network namespace of outside")?;
        let (stopped, stop) = std::io::pipe()?;
        let ports = link.ends().map(net::port);
        let pipes = [Pipe::new(shape, random()?), Pipe::new(shape, random()?)];
        let (report, started) = mpsc::channel();
        let thread = thread::Builder::new().name("slow".into()).spawn(move || {
            let sides = setns(&namespace, CloneFlags::CLONE_NEWNET)
                .context("cannot enter the network of outside")
                .and_then(|()| Sides::open(&ports, addresses, pipes));
            match sides {
                Err(error) => {
                    let _ = report.send(Err(error));
                }
                Ok(mut sides) => {
                    let _ = report.send(Ok(()));
                    if let Err(error) = sides.run(&stopped) {
                        eprintln!("the slow link of {} ended: {error:#}", ports.join(" and "));
                    }
                }
            }
        })?;
        let answer = started.recv_timeout(START_LIMIT);
        answer.map_err(|_| anyhow!("the thread of a slow link did not start"))??;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One port, and what is on its way to it.
struct Side {
    packets: Packets,
    /// That of the machine behind the port, and the sources of frames that came in here.
    addresses: HashSet<Address>,
    to_here: Pipe,
}

struct Sides([Side; 2]);

impl Sides {
    fn open(ports: &[String; 2], addresses: [Address; 2], pipes: [Pipe; 2]) -> Result<Self> {
        let side = |port: &str, own: Address, to_here: Pipe| -> Result<Side> {
            Ok(Side {
                packets: Packets::open(port).with_context(|| format!("cannot use {port}"))?,
                addresses: HashSet::from([own]),
                to_here,
            })
        };
        let ([one, other], [to_one, to_other]) = (addresses, pipes);
        Ok(Self([
            side(&ports[0], one, to_one)?,
            side(&ports[1], other, to_other)?,
        ]))
    }

    /// Returns when the other end of `stopped` closes.
    fn run(&mut self, stopped: &impl AsFd) -> Result<()> {
        let mut frame = vec![0; packets::LONGEST];
        loop {
            let now = Instant::now();
            let Self([one, other]) = self;
            one.deliver(now);
            other.deliver(now);
            let next = [&one.to_here, &other.to_here];
            let next = next.into_iter().filter_map(Pipe::next).min();
            let mut fds = [
                PollFd::new(one.packets.as_fd(), PollFlags::POLLIN),
                PollFd::new(other.packets.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, timeout(next, now)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait"),
            }
            if fds[2].any().unwrap_or(true) {
                return Ok(());
            }
            one.read(other, &mut frame)?;
            other.read(one, &mut frame)?;
        }
    }
}

impl Side {
    /// Takes what came in here and is for the other side.
    fn read(&mut self, other: &mut Self, buffer: &mut [u8]) -> Result<()> {
        for _ in 0..BATCH {
            let Some(length) = self.packets.read(buffer)? else {
                return Ok(());
            };
            let taken = buffer.get(..length).unwrap_or_default();
            let Some((to, from)) = addresses(taken) else {
                continue;
            };
            if self.addresses.len() < ADDRESSES_MAX {
                self.addresses.insert(from);
            }
            let for_all = to[0] & 1 == 1;
            if for_all || other.addresses.contains(&to) {
                let size = length.saturating_sub(HEADER);
                other.to_here.push(Instant::now(), size, taken);
            }
        }
        Ok(())
    }

    /// Writes the frames whose time has come.
    fn deliver(&mut self, now: Instant) {
        while let Some(frame) = self.to_here.pop(now) {
            // A full queue of the port loses the frame, as on any network.
            let _ = self.packets.write(&frame);
        }
    }
}

fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The destination and the source of a frame.
fn addresses(frame: &[u8]) -> Option<(Address, Address)> {
    let frame = frame.get(HEADER..)?;
    let to = frame.get(..6)?.try_into().ok()?;
    let from = frame.get(6..12)?.try_into().ok()?;
    Some((to, from))
}

/// Until `next`, rounded up to a millisecond: a wait of less would be a busy loop.
fn timeout(next: Option<Instant>, now: Instant) -> PollTimeout {
    match next {
        None => PollTimeout::NONE,
        Some(next) => {
            let left = next
                .saturating_duration_since(now)
                .as_micros()
                .div_ceil(1000);
            PollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
        }
    }
}
