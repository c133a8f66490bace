//! The port for guests' reports: it leads to the metadata service, or is refused at once while the service hangs.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use waifud_images::cloud_init_package;
use waifud_kit::testing::skip;
use waifud_types::template::REPORT_PORT;

use crate::home::guest_at_home;
use crate::lab::{METADATA, on_a_node, set_bridge_netfilter};
use crate::namespace::Namespace;
use crate::reach::{accept, greeter, greets};
use crate::wire::{PATIENCE, wait_readable};

const DOCUMENTS: SocketAddrV4 = SocketAddrV4::new(METADATA, 80);
const REPORTS: SocketAddrV4 = SocketAddrV4::new(METADATA, REPORT_PORT);
const ON_A_LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 40);

/// Far below the second after which a lost SYN is sent again.
const AT_ONCE: Duration = Duration::from_millis(500);

fn is_refused_at_once(guest: &Namespace) {
    let started = Instant::now();
    let error = guest.run(|| TcpStream::connect_timeout(&REPORTS.into(), PATIENCE).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
}

/// A connection for reports.
fn connected(guest: &Namespace) -> TcpStream {
    guest.run(|| {
        let stream = TcpStream::connect_timeout(&REPORTS.into(), PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    })
}

fn is_reset(mut stream: TcpStream) {
    stream.write_all(b"an event").unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

#[test]
fn reports_of_a_guest_on_default_reach_the_service_or_are_refused_at_once() {
    on_a_node(1, |mut lab| async move {
        lab.connect_metadata().await;
        lab.ensure().await;
        let server = greeter(&lab.metadata, DOCUMENTS);
        let guest = lab.attach(0).await;
        let own = guest.address();
        assert_eq!(greets(&guest.namespace, REPORTS, &server), own);

        for bridge_netfilter in [false, true] {
            if !set_bridge_netfilter(&lab.node, bridge_netfilter) {
                continue;
            }
            // A connection whose request is not answered, as if the service hung.
            let waiting = connected(&guest.namespace);
            let _unanswered = accept(&server);
            lab.state.refuse_reports = true;
            lab.ensure().await;
            is_reset(waiting);
            is_refused_at_once(&guest.namespace);
            // Requests for documents wait for the service.
            assert_eq!(greets(&guest.namespace, DOCUMENTS, &server), own);

            lab.state.refuse_reports = false;
            lab.ensure().await;
            assert_eq!(greets(&guest.namespace, REPORTS, &server), own);
        }
    });
}

#[test]
fn reports_of_a_guest_on_a_lan_reach_the_service() {
    on_a_node(0, |mut lab| async move {
        let (_home, guest) = guest_at_home(&mut lab, ON_A_LAN).await;
        let server = greeter(&lab.metadata, DOCUMENTS);
        for bridge_netfilter in [false, true] {
            if !set_bridge_netfilter(&lab.node, bridge_netfilter) {
                continue;
            }
            assert_eq!(
                Some(greets(&guest.namespace, REPORTS, &server)),
                guest.port.identity
            );
        }
    });
}

#[test]
fn the_hosts_own_metadata_service_is_not_affected() {
    on_a_node(0, |mut lab| async move {
        lab.state.refuse_reports = true;
        lab.ensure().await;
        // The node itself may be a guest of a cloud that serves something at this port.
        lab.outside.ip(&format!("addr add {METADATA}/32 dev eth0"));
        lab.node.ip(&format!("route add {METADATA}/32 dev up0"));
        let server = greeter(&lab.outside, REPORTS);
        greets(&lab.node, REPORTS, &server);
    });
}

/// The modules of each stage of a boot.
const BOOT: &[u32] = &[2, 20, 15, 20];

/// The share of a boot that reporting may cost while the service hangs.
const COST_MAX: Duration = Duration::from_millis(50);

/// A service that answers reports, or accepts connections and does not answer.
struct Server {
    hangs: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn start(listener: TcpListener) -> Self {
        let server = Self {
            hangs: Arc::default(),
            stop: Arc::default(),
        };
        let (hangs, stop) = (server.hangs.clone(), server.stop.clone());
        listener.set_nonblocking(true).unwrap();
        thread::spawn(move || {
            let mut held = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) if hangs.load(Ordering::Relaxed) => held.push(stream),
                    Ok((stream, _)) => answer(stream),
                    Err(_) => wait_readable(&listener, Duration::from_millis(100)),
                }
            }
        });
        server
    }

    fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn answer(mut stream: TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut request, mut part) = (Vec::new(), [0; 2048]);
    // The body is one JSON object, and the head contains no brace.
    while request.last() != Some(&b'}') {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(length) => request.extend_from_slice(&part[..length]),
        }
    }
    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
}

/// Makes cloud-init's own reporter post the events of these stages. Returns the time that they took, and how many events
/// could not be posted.
fn report(guest: &Namespace, cloud_init: &Path, stages: &[u32]) -> (Duration, u64) {
    // As in vendor-data.
    let reporter = json!({
        "type": "webhook",
        "endpoint": format!("http://{REPORTS}/waifud/cloud-init"),
        "timeout": 2,
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/linux/reporter.py");
    let output = guest.run(|| {
        Command::new("/usr/bin/python3")
            .arg(script)
            .arg(json!([reporter, stages]).to_string())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env(
                "PYTHONPATH",
                cloud_init.join("usr/lib/python3/dist-packages"),
            )
            .output()
            .unwrap()
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    let seconds = seen["seconds"].as_array().unwrap().iter();
    let total = seconds.map(|s| s.as_f64().unwrap()).sum();
    (
        Duration::from_secs_f64(total),
        seen["failed"].as_u64().unwrap(),
    )
}

#[test]
fn while_the_service_hangs_reporting_costs_a_boot_of_cloud_init_less_than_50_ms() {
    on_a_node(1, |mut lab| async move {
        lab.connect_metadata().await;
        lab.ensure().await;
        let guest = lab.attach(0).await;
        let server = Server::start(greeter(&lab.metadata, DOCUMENTS));
        for (suite, version) in [("bookworm", "22.4."), ("trixie", "25.1.")] {
            let cloud_init = match cloud_init_package(suite, version) {
                Ok(directory) => directory,
                Err(error) => return skip(&format!("{error:#}")),
            };
            let run = |stages| report(&guest.namespace, &cloud_init, stages);
            // The shortest of a few runs, because the machine may be busy.
            let (mut answered, mut refused) = (Duration::MAX, Duration::MAX);
            for _ in 0..3 {
                server.hang(false);
                lab.state.refuse_reports = false;
                lab.ensure().await;
                let (took, failed) = run(BOOT);
                assert_eq!(failed, 0, "{version}");
                answered = answered.min(took);

                server.hang(true);
                lab.state.refuse_reports = true;
                lab.ensure().await;
                let (took, failed) = run(BOOT);
                assert!(failed > 0, "{version}");
                refused = refused.min(took);
            }
            // Without the refusal, one stage waits for three timeouts.
            lab.state.refuse_reports = false;
            lab.ensure().await;
            let (hanging, _) = run(&[5]);
            assert!(hanging > Duration::from_secs(1), "{version}: {hanging:?}");
            println!(
                "cloud-init {version}x: a boot with answers {answered:?}, refused {refused:?}; one stage without refusal {hanging:?}"
            );
            assert!(
                refused < answered + COST_MAX,
                "{version}: {refused:?}, {answered:?}"
            );
        }
    });
}
