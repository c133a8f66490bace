//! Names that the real dnsmasq serves at an address of the node, and real resolvers that ask it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use waifud_kit::testing::skip_if;
use waifud_network::linux::LinuxNetwork;
use waifud_network::samples::{remote, remote_name};
use waifud_network::{DnsAddress, DnsTrouble, GuestNetwork};
use waifud_types::dns::{DOMAIN, Resolver, reverse_zones};

use crate::dns::{A, NO_SUCH_NAME, PTR, REFUSED, ask_at, found};
use crate::lab::{Lab, UPLINK, on_a_node};
use crate::lifecycle::drifts;
use crate::namespace::Namespace;
use crate::wire::{PATIENCE, eventually};

const DNS: SocketAddrV4 = SocketAddrV4::new(UPLINK, 53);
/// An address in the network of the node that no machine has.
const ABSENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 3), 53);

/// The network of the lab with names at these addresses. Everything is checked often.
fn serving(lab: &Lab, addresses: &[SocketAddrV4]) -> Arc<LinuxNetwork> {
    lab.restarted_with(|config| {
        config.dns_listen = addresses.to_vec();
        config.full_check = Duration::from_millis(50);
    })
}

/// The answer that another machine of the node's network gets.
fn ask(lab: &Lab, name: &str, kind: u16) -> (u8, Option<String>) {
    ask_at(&lab.outside, DNS, name, kind, PATIENCE).unwrap()
}

async fn troubles(network: &LinuxNetwork) -> Vec<Option<DnsTrouble>> {
    let served = network.dns().await;
    served.into_iter().map(|one| one.trouble).collect()
}

#[test]
fn names_of_all_guests_are_served_and_nothing_else() {
    on_a_node(2, |mut lab| async move {
        lab.state.remote_subnets = vec![remote(2)];
        lab.state.remote_names = [remote_name("web", 2, 7)].into();
        let network = serving(&lab, &[DNS]);
        network.ensure(&lab.state).await.unwrap();
        assert_eq!(
            network.dns().await,
            [DnsAddress {
                address: DNS,
                trouble: None
            }]
        );
        for (name, kind, answer) in [
            ("guest-1.waifu.internal", A, "10.144.1.12"),
            ("web.waifu.internal", A, "10.144.2.7"),
            ("12.1.144.10.in-addr.arpa", PTR, "guest-1.waifu.internal"),
            ("7.2.144.10.in-addr.arpa", PTR, "web.waifu.internal"),
        ] {
            assert_eq!(ask(&lab, name, kind), found(answer), "{name}");
        }
        for (name, kind) in [
            ("missing.waifu.internal", A),
            ("200.1.144.10.in-addr.arpa", PTR),
            ("200.2.144.10.in-addr.arpa", PTR),
        ] {
            assert_eq!(ask(&lab, name, kind), (NO_SUCH_NAME, None), "{name}");
        }
        for (name, kind) in [
            ("example.org", A),
            ("guest-1", A),
            ("localhost", A),
            ("1.2.0.192.in-addr.arpa", PTR),
        ] {
            assert_eq!(ask(&lab, name, kind), (REFUSED, None), "{name}");
        }
        let pids = lab.served();
        let status = std::fs::read_to_string(format!("/proc/{}/status", pids[0])).unwrap();
        let user = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .unwrap();
        assert!(pids.len() == 1 && !user.contains("\t0\t"), "{user}");

        // A guest is renamed, another one is deleted, and one of another node moves.
        lab.state.ports[0].name = "renamed".parse().unwrap();
        lab.state.ports.pop();
        lab.state.remote_names = [remote_name("web", 2, 9)].into();
        network.ensure(&lab.state).await.unwrap();
        for (name, kind, answer) in [
            ("renamed.waifu.internal", A, "10.144.1.11"),
            ("web.waifu.internal", A, "10.144.2.9"),
            ("9.2.144.10.in-addr.arpa", PTR, "web.waifu.internal"),
        ] {
            assert_eq!(ask(&lab, name, kind), found(answer), "{name}");
        }
        for name in ["guest-0.waifu.internal", "guest-1.waifu.internal"] {
            assert_eq!(ask(&lab, name, A), (NO_SUCH_NAME, None), "{name}");
        }
        assert_eq!(lab.served(), pids);
    });
}

#[test]
fn names_are_served_over_restarts_until_the_setting_is_removed() {
    on_a_node(1, |lab| async move {
        serving(&lab, &[DNS]).ensure(&lab.state).await.unwrap();
        let pids = lab.served();
        let network = serving(&lab, &[DNS]);
        let mut drift = network.drift();
        network.ensure(&lab.state).await.unwrap();
        assert_eq!(lab.served(), pids);

        let pid = nix::unistd::Pid::from_raw(pids[0]);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        drifts(&mut drift, "names at 192.0.2.2:53: dnsmasq has ended").await;
        network.ensure(&lab.state).await.unwrap();
        assert_eq!(ask(&lab, "guest-0.waifu.internal", A), found("10.144.1.11"));
        drop(network);

        let guests = lab.dnsmasqs();
        let network = serving(&lab, &[]);
        network.ensure(&lab.state).await.unwrap();
        assert!(network.dns().await.is_empty() && lab.served().is_empty());
        assert_eq!(lab.dnsmasqs(), guests);
        drop(network);

        serving(&lab, &[DNS]).ensure(&lab.state).await.unwrap();
        let removed = lab.restarted().remove("wgw0").await.unwrap();
        assert!(
            removed.contains(&"names at 192.0.2.2:53".to_owned()),
            "{removed:?}"
        );
        assert_eq!(std::fs::read_dir(lab.run_dir()).unwrap().count(), 0);
    });
}

#[test]
fn a_port_that_another_program_has_affects_no_guest_and_is_used_once_it_is_free() {
    on_a_node(1, |lab| async move {
        let loopback = "127.0.0.1:5353".parse().unwrap();
        let network = serving(&lab, &[loopback, DNS]);
        let other = (
            UdpSocket::bind(DNS).unwrap(),
            TcpListener::bind(DNS).unwrap(),
        );
        let mut drift = network.drift();
        for _ in 0..2 {
            network.ensure(&lab.state).await.unwrap();
            let served = troubles(&network).await;
            assert_eq!(served, [None, Some(DnsTrouble::PortTaken)]);
        }
        let answer = ask_at(&lab.node, loopback, "guest-0.waifu.internal", A, PATIENCE);
        assert_eq!(answer.unwrap(), found("10.144.1.11"));
        drop(other);
        drifts(&mut drift, "names at 192.0.2.2:53: the port is free again").await;
        network.ensure(&lab.state).await.unwrap();
        assert_eq!(troubles(&network).await, [None, None]);
        assert_eq!(ask(&lab, "guest-0.waifu.internal", A), found("10.144.1.11"));
    });
}

#[test]
fn an_address_that_the_node_lacks_is_used_once_it_has_it() {
    on_a_node(1, |lab| async move {
        let network = serving(&lab, &[ABSENT]);
        let mut drift = network.drift();
        network.ensure(&lab.state).await.unwrap();
        assert_eq!(troubles(&network).await, [Some(DnsTrouble::NoAddress)]);
        assert!(lab.served().is_empty());
        let ask = || ask_at(&lab.outside, ABSENT, "guest-0.waifu.internal", A, PATIENCE);
        for _ in 0..2 {
            lab.node.ip(&format!("addr add {}/24 dev up0", ABSENT.ip()));
            drifts(&mut drift, "names at 192.0.2.3:53: the address was added").await;
            network.ensure(&lab.state).await.unwrap();
            assert_eq!(troubles(&network).await, [None]);
            assert_eq!(ask().unwrap(), found("10.144.1.11"));
            lab.node.ip(&format!("addr del {}/24 dev up0", ABSENT.ip()));
            drifts(&mut drift, "names at 192.0.2.3:53: the address was removed").await;
            network.ensure(&lab.state).await.unwrap();
            assert_eq!(troubles(&network).await, [Some(DnsTrouble::NoAddress)]);
        }
    });
}

/// A resolver on another machine of the node's network, at 127.0.0.1.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(on: &Namespace, program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        Self(on.run(|| command.spawn().unwrap()))
    }
}

/// Whether the resolver at this loopback address answers for guests, with one of two servers off.
fn resolves_guests(outside: &Namespace, resolver: [u8; 4]) {
    let resolver = SocketAddrV4::new(resolver.into(), 53);
    let patience = Duration::from_secs(1);
    for (name, kind, answer) in [
        ("guest-0.waifu.internal", A, found("10.144.1.11")),
        (
            "11.1.144.10.in-addr.arpa",
            PTR,
            found("guest-0.waifu.internal"),
        ),
        ("missing.waifu.internal", A, (NO_SUCH_NAME, None)),
    ] {
        let mut last = None;
        eventually(&format!("{name} resolves"), || {
            last = ask_at(outside, resolver, name, kind, patience).ok();
            last.as_ref() == Some(&answer)
        });
    }
}

/// The lines as `waifuctl dns show` prints them, in a file, for two servers of which the first is off.
fn lines(resolver: Resolver, directory: &Path) -> String {
    let servers = [ABSENT, DNS].map(SocketAddr::V4);
    let zones = reverse_zones("10.144.0.0/12".parse().unwrap());
    let path = directory.join("lines.conf");
    std::fs::write(&path, resolver.lines(DOMAIN, &zones, &servers)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn dnsmasq_with_the_printed_lines_resolves_guests_while_a_server_is_off() {
    on_a_node(1, |lab| async move {
        let network = serving(&lab, &[DNS]);
        network.ensure(&lab.state).await.unwrap();
        for resolver in [Resolver::Dnsmasq, Resolver::Pihole] {
            let directory = tempfile::tempdir().unwrap();
            let config = directory.path().join("dnsmasq.conf");
            // As a home's resolver is: it discards private addresses from elsewhere, and answers private reverse zones.
            let text = format!(
                "listen-address=127.0.0.1\nbind-interfaces\nno-hosts\nno-resolv\ndomain-needed\nbogus-priv\n\
                 stop-dns-rebind\nuser=root\npid-file=\nconf-file={}\n",
                lines(resolver, directory.path())
            );
            std::fs::write(&config, text).unwrap();
            let config = format!("--conf-file={}", config.display());
            let arguments = ["--keep-in-foreground", &config];
            let _running = Running::start(&lab.outside, "/usr/sbin/dnsmasq", &arguments);
            resolves_guests(&lab.outside, [127, 0, 0, 1]);
        }
    });
}

#[test]
fn unbound_with_the_printed_lines_resolves_guests_while_a_server_is_off() {
    let unbound = "/usr/sbin/unbound";
    if skip_if((!Path::new(unbound).exists()).then_some("needs /usr/sbin/unbound")) {
        return;
    }
    on_a_node(1, |lab| async move {
        let network = serving(&lab, &[DNS]);
        network.ensure(&lab.state).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("unbound.conf");
        // It discards private addresses from elsewhere, and validates signatures from the root of the DNS on (RFC 7958).
        let text = format!(
            "server:\n interface: 127.0.0.1\n access-control: 127.0.0.0/8 allow\n do-ip6: no\n chroot: \"\"\n\
             \x20username: \"\"\n directory: \"\"\n pidfile: \"\"\n use-syslog: no\n private-address: 10.0.0.0/8\n\
             \x20trust-anchor: \". DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D\"\n\
             remote-control:\n control-enable: no\ninclude: \"{}\"\n",
            lines(Resolver::Unbound, directory.path())
        );
        std::fs::write(&config, text).unwrap();
        let arguments = ["-d", "-p", "-c", config.to_str().unwrap()];
        let _running = Running::start(&lab.outside, unbound, &arguments);
        resolves_guests(&lab.outside, [127, 0, 0, 1]);
    });
}

/// Runs systemd-resolved without systemd, with its configuration in $1, the state of the link $2 as systemd-networkd writes it,
/// and its libraries in $4.
const RESOLVED: &str = r#"
mount -t tmpfs none /run && mount -t tmpfs none /etc/systemd && mount --bind /dev/null /etc/resolv.conf
{ cat /etc/passwd; echo systemd-resolve:x:65533:65533::/:/usr/sbin/nologin; } >/run/passwd
mount --bind /run/passwd /etc/passwd
mkdir -p /etc/systemd/resolved.conf.d /run/systemd/resolve /run/systemd/netif/links
cp "$1" /etc/systemd/resolved.conf.d/waifud.conf
printf 'ADMIN_STATE=configured\nOPER_STATE=routable\nDNS=127.0.0.2\n' >"/run/systemd/netif/links/$2"
chown 65533:65533 /run/systemd/resolve
LD_LIBRARY_PATH=$4 exec "$3"
"#;

/// Answers every question with the address 192.0.2.99, as the resolver of a home does for other names.
fn answer_others(outside: &Namespace) {
    let socket = outside.run(|| UdpSocket::bind("127.0.0.2:53").unwrap());
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            // The question ends with the root's label, the type and the class (RFC 1035, section 4.1.2).
            let question = packet.get(12..length).unwrap();
            let end = question.iter().position(|byte| *byte == 0).unwrap() + 5;
            let mut answer = packet[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend(&question[..end]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
            socket.send_to(&answer, from).unwrap();
        }
    });
}

#[test]
fn systemd_resolved_with_the_printed_lines_resolves_guests_while_a_server_is_off() {
    let packages = ["systemd-resolved", "libsystemd-shared"];
    let unpacked = waifud_images::unpacked("bookworm", &packages);
    if skip_if(unpacked.as_ref().err().map(|error| format!("{error:#}"))) {
        return;
    }
    let unpacked = unpacked.unwrap();
    on_a_node(1, |lab| async move {
        let network = serving(&lab, &[DNS]);
        network.ensure(&lab.state).await.unwrap();
        answer_others(&lab.outside);
        let directory = tempfile::tempdir().unwrap();
        let lines = lines(Resolver::SystemdResolved, directory.path());
        let link = lab.outside.run(|| nix::net::if_::if_nametoindex("eth0"));
        let link = link.unwrap().to_string();
        let program = unpacked.join("lib/systemd/systemd-resolved");
        let libraries = unpacked.join("usr/lib/x86_64-linux-gnu/systemd");
        let script = ["-m", "sh", "-ec", RESOLVED, "resolved", &lines, &link];
        let paths = [&program, &libraries].map(|path| path.to_str().unwrap());
        let arguments = [&script[..], &paths].concat();
        let _running = Running::start(&lab.outside, "unshare", &arguments);
        resolves_guests(&lab.outside, [127, 0, 0, 53]);
        let resolver = SocketAddrV4::new([127, 0, 0, 53].into(), 53);
        for _ in 0..4 {
            let other = ask_at(&lab.outside, resolver, "example.org", A, PATIENCE);
            assert_eq!(other.unwrap(), found("192.0.2.99"));
        }
    });
}
