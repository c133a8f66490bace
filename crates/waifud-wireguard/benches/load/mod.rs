//! A bounded load of HTTP requests from many source addresses, with tokio only. For benches of any service on
//! 169.254.169.254, in the caller's network namespace.

#![allow(dead_code, reason = "tests and benches use different parts")]

pub mod client;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use self::client::Client;

/// The requests, their sources and their number.
#[derive(Debug, Clone)]
pub struct Load {
    /// The address of the service.
    pub target: SocketAddr,
    /// Addresses that clients connect from, in turn. They must be the machine's own.
    pub sources: Vec<Ipv4Addr>,
    /// Concurrent clients.
    pub clients: usize,
    /// Requests of all clients together; the load ends after them.
    pub requests: usize,
    /// Paths, requested in turn.
    pub paths: Vec<String>,
    /// Headers for every request, without line ends.
    pub headers: Vec<String>,
    /// Whether a client keeps its connection or opens one for each request.
    pub keep: bool,
    /// The time limit of a request, after which it counts as failed.
    pub timeout: Duration,
}

/// The result of a load.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Requests with status 200 and a complete body.
    pub answered: usize,
    /// All other requests, with the first error.
    pub failed: usize,
    pub first_error: Option<String>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Time of each answered request, shortest first. With new connections, connecting is part of it.
    pub times: Vec<Duration>,
}

impl Outcome {
    pub fn per_second(&self) -> f64 {
        f64::from(u32::try_from(self.answered).unwrap_or(u32::MAX)) / self.elapsed.as_secs_f64()
    }

    /// The given percentile of the times of answered requests.
    pub fn percentile(&self, hundredths: usize) -> Duration {
        let last = self.times.len().saturating_sub(1);
        self.times
            .get(last * hundredths / 100)
            .copied()
            .unwrap_or_default()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = |hundredths| self.percentile(hundredths).as_secs_f64() * 1000.0;
        write!(
            f,
            "{:>8.0}/s  p50 {:>7.2} ms  p99 {:>7.2} ms  max {:>7.2} ms  failed {}",
            self.per_second(),
            millis(50),
            millis(99),
            millis(100),
            self.failed
        )?;
        self.first_error
            .as_ref()
            .map_or(Ok(()), |error| write!(f, " ({error})"))
    }
}

impl Load {
    /// Runs the load to its end.
    pub async fn run(self) -> Outcome {
        let load = Arc::new(self);
        let next = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        let clients: Vec<_> = (0..load.clients)
            .map(|number| tokio::spawn(one_client(Arc::clone(&load), Arc::clone(&next), number)))
            .collect();
        let mut outcome = Outcome {
            answered: 0,
            failed: 0,
            first_error: None,
            elapsed: Duration::ZERO,
            times: Vec::new(),
        };
        for client in clients {
            let (times, errors) = client
                .await
                .unwrap_or_else(|error| (Vec::new(), vec![error.to_string()]));
            outcome.failed += errors.len();
            outcome.first_error = outcome.first_error.or_else(|| errors.into_iter().next());
            outcome.times.extend(times);
        }
        outcome.elapsed = start.elapsed();
        outcome.answered = outcome.times.len();
        outcome.times.sort_unstable();
        outcome
    }
}

/// Sends requests until all have been sent.
async fn one_client(
    load: Arc<Load>,
    next: Arc<AtomicUsize>,
    number: usize,
) -> (Vec<Duration>, Vec<String>) {
    let (mut times, mut errors) = (Vec::new(), Vec::new());
    let source = load.sources[number % load.sources.len()];
    let mut kept = None;
    loop {
        let request = next.fetch_add(1, Ordering::Relaxed);
        if request >= load.requests {
            return (times, errors);
        }
        let path = &load.paths[request % load.paths.len()];
        let start = Instant::now();
        let asked = async {
            let mut client = match kept.take() {
                Some(client) => client,
                None => Client::connect(source, load.target).await?,
            };
            client
                .get(path, &load.headers, load.keep)
                .await
                .map(|answer| (client, answer))
        };
        match tokio::time::timeout(load.timeout, asked).await {
            Ok(Ok((client, answer))) if answer.status == 200 => {
                times.push(start.elapsed());
                kept = load.keep.then_some(client);
            }
            Ok(Ok((_, answer))) => errors.push(format!("status {}", answer.status)),
            Ok(Err(error)) => errors.push(error.to_string()),
            Err(_) => errors.push("no answer in time".into()),
        }
    }
}
