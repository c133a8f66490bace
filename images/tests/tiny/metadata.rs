//! The tiny guest reads its documents at every boot, and applies them once per instance-id. Other tests rely on that.
//!
//! Everything runs in a network namespace of the test's thread, which has no routes and ends with the thread.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::machine::{Machine, missing, overlay, turn};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use waifud_images::{Guest, build, default_cache_dir};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0000000000000000000000000000000000000000000";

#[derive(Default)]
struct Service {
    documents: Mutex<HashMap<String, String>>,
    posts: Mutex<Vec<String>>,
    events: Mutex<Vec<String>>,
}

impl Service {
    fn put(&self, path: &str, document: impl Into<String>) {
        self.documents
            .lock()
            .unwrap()
            .insert(path.to_owned(), document.into());
    }

    /// The reporter's events since the last call, as `TYPE NAME RESULT`.
    fn reported(&self) -> Vec<String> {
        let events = std::mem::take(&mut *self.events.lock().unwrap());
        let line = |event: &String| {
            let event: serde_json::Value = serde_json::from_str(event).unwrap();
            let word = |key: &str| event[key].as_str().unwrap_or("-").to_owned();
            assert!(event["timestamp"].is_number(), "{event}");
            [word("event_type"), word("name"), word("result")].join(" ")
        };
        events.iter().map(line).collect()
    }

    /// Answers one request for each connection.
    fn serve(&self, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let _ = self.answer(stream);
        }
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(": ") else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (status, body) = if method == "POST" {
            let form = String::from_utf8_lossy(&body).into_owned();
            let kept = if path == "/waifud/cloud-init" {
                &self.events
            } else {
                &self.posts
            };
            kept.lock().unwrap().push(form);
            ("200 OK", String::new())
        } else {
            match self.documents.lock().unwrap().get(path) {
                Some(document) => ("200 OK", document.clone()),
                None => ("404 Not Found", String::new()),
            }
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(arguments: &str) {
    let done = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// A network for this thread: a tap for the guest, the metadata address, and DHCP that assigns a /32 with routes, as
/// the routed network does.
fn network(dir: &Path) -> Ended {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
    ip("tuntap add name tap0 mode tap");
    ip("addr add 10.99.0.1/24 dev tap0");
    ip("addr add 169.254.169.254/32 dev lo");
    ip("link set tap0 up");
    Ended(
        Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
            .args(["--no-ping", "--interface=tap0", "--bind-interfaces", "--user=root"])
            .args(["--dhcp-range=10.99.0.10,10.99.0.10,255.255.255.0,1h"])
            .args(["--dhcp-option=26,1400", "--dhcp-option=1,255.255.255.255"])
            .args(["--dhcp-option=121,10.99.0.1/32,0.0.0.0,169.254.169.254/32,10.99.0.1,0.0.0.0/0,10.99.0.1"])
            .arg(format!("--dhcp-leasefile={}", dir.join("leases").display()))
            .arg(format!("--pid-file={}", dir.join("dnsmasq.pid").display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

fn meta_data(id: &str) -> String {
    json!({
        "uuid": id, "hostname": "web", "name": "web", "launch_index": 0,
        "public_keys": {"a": format!("{KEY} me@home")},
        "keys": [{"name": "a", "type": "ssh", "data": format!("{KEY} me@home")}],
    })
    .to_string()
}

#[test]
fn edited_user_data_is_read_at_the_next_boot_and_scripts_run_once_per_instance_id() {
    if missing(&[
        "mmdebstrap",
        "qemu-img",
        "qemu-system-x86_64",
        "dnsmasq",
        "ip",
        "/dev/net/tun",
    ]) {
        return;
    }
    let _turn = turn();
    let built = build(Guest::Tiny, &default_cache_dir(), &|line| {
        eprintln!("{line}");
    })
    .unwrap();
    // A separate thread, because the network namespace belongs to the thread.
    thread::spawn(move || story(&built.qcow2)).join().unwrap();
}

fn story(image: &Path) {
    const META: &str = "/openstack/latest/meta_data.json";
    const USER: &str = "/openstack/latest/user_data";
    let dir = tempfile::tempdir().unwrap();
    let _dhcp = network(dir.path());
    let service = Arc::new(Service::default());
    service.put(META, meta_data("i-first"));
    service.put(USER, "#!/bin/sh\necho ran >>/root/runs\n");
    service.put(
        "/openstack/latest/vendor_data.json",
        json!({"cloud-init": "#cloud-config\n{\n  \"phone_home\": {\n    \"post\": [\"instance_id\", \"hostname\"],\n    \"tries\": 5,\n    \"url\": \"http://169.254.169.254/waifud/phone-home\"\n  },\n  \"reporting\": {\n    \"waifud\": {\n      \"endpoint\": \"http://169.254.169.254/waifud/cloud-init\",\n      \"type\": \"webhook\"\n    }\n  }\n}\n"})
            .to_string(),
    );
    let listener = TcpListener::bind("169.254.169.254:80").unwrap();
    let serving = Arc::clone(&service);
    thread::spawn(move || serving.serve(&listener));

    let mut machine = Machine::start(
        &overlay(image, dir.path()),
        dir.path(),
        &[
            "-nic",
            "tap,ifname=tap0,script=no,downscript=no,model=virtio-net-pci",
            "-smbios",
            "type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova",
        ],
    );
    let done = machine.wait_for("metadata done");
    assert!(
        done.contains("DataSourceOpenStackLocal [net,ver=2], instance i-first,"),
        "{}",
        machine.seen()
    );
    machine.wait_for("web login:");
    let posts = service.posts.lock().unwrap().clone();
    let host_key = "instance_id=i-first&hostname=web&pub_key_ed25519=ssh-ed25519%20AAAA";
    assert!(
        matches!(&posts[..], [form] if form.starts_with(host_key)),
        "{posts:?}"
    );
    let boot = [
        "start init-network/config-ssh -",
        "finish init-network/config-ssh SUCCESS",
        "start modules-final/config-scripts-user -",
        "finish modules-final/config-scripts-user SUCCESS",
        "finish modules-final SUCCESS",
    ];
    assert_eq!(service.reported(), boot);
    assert_eq!(machine.read("/run/cloud-init/.instance-id"), "i-first\n");
    assert_eq!(machine.read("/root/runs"), "ran\n");
    for user in ["/root", "/home/debian"] {
        let keys = machine.read(&format!("{user}/.ssh/authorized_keys"));
        assert_eq!(keys, format!("{KEY}\n"));
    }
    let result: serde_json::Value =
        serde_json::from_str(&machine.read("/run/cloud-init/result.json")).unwrap();
    assert_eq!(
        result,
        json!({"v1": {"datasource": "DataSourceOpenStackLocal [net,ver=2]", "errors": []}})
    );
    let status: serde_json::Value =
        serde_json::from_str(&machine.read("/run/cloud-init/status.json")).unwrap();
    assert_eq!(status["v1"]["stage"], json!(null));
    assert!(status["v1"]["modules-final"]["finished"].is_number());
    assert_eq!(machine.read("/sys/class/net/eth0/mtu"), "1400\n");
    let interfaces = machine.agent("guest-network-get-interfaces", &json!({}));
    assert!(
        interfaces.to_string().contains("10.99.0.10"),
        "{interfaces}"
    );

    // Edited user-data of the same instance is read, but not run.
    service.put(USER, "#!/bin/sh\necho edited >>/root/runs\n");
    let asked = machine.agent_last_words("guest-shutdown", &json!({"mode": "reboot"}));
    machine.wait_for("instance i-first,");
    drop(asked);
    machine.wait_for("web login:");
    assert!(machine.read("/var/lib/cloud/user-data").contains("edited"));
    assert_eq!(machine.read("/root/runs"), "ran\n");
    assert_eq!(service.posts.lock().unwrap().len(), 1);
    assert_eq!(
        service.reported(),
        [boot[0], boot[1], boot[4]],
        "at every boot"
    );

    // With a new instance-id it is run, and its failure is reported.
    service.put(META, meta_data("i-second"));
    service.put(USER, "#!/bin/sh\necho again >>/root/runs\nexit 3\n");
    let asked = machine.agent_last_words("guest-shutdown", &json!({"mode": "reboot"}));
    machine.wait_for("instance i-second,");
    drop(asked);
    machine.wait_for("web login:");
    assert_eq!(machine.read("/root/runs"), "ran\nagain\n");
    assert_eq!(service.posts.lock().unwrap().len(), 2);
    let failed = service.reported();
    let ends = [
        "finish modules-final/config-scripts-user FAIL",
        "finish modules-final FAIL",
    ];
    assert_eq!(failed[3..], ends, "{failed:?}");
    let result = machine.read("/run/cloud-init/result.json");
    assert!(result.contains("scripts-user"), "{result}");
    let first: u64 = machine.read("/run/counter").trim().parse().unwrap();
    machine.wait_for("tiny: tick");
    assert!(machine.read("/run/counter").trim().parse::<u64>().unwrap() >= first);
}
