//! `waifuctl doctor`: checks the whole installation and suggests repairs.

mod images;
mod server;

use serde::Serialize;
pub(super) use server::free;
use waifud_api::{DownloadState, Node};
use waifud_types::MeshBackend;
use waifud_types::node::{NoKvm, NodeState};
use waifud_types::status::HypervisorKind;

use crate::commands::image;
use crate::context::Context;
use crate::failure::Failure;
use crate::hint;
use crate::pagination::all_nodes;
use crate::pools::percent;
use crate::text::escape;

/// Clock skew in seconds that causes a warning, since it affects certificates and logs.
const SKEW_S: f64 = 30.0;
/// Usage of a pool in percent that causes a warning.
const NEAR_FULL: u64 = 85;
/// Usage of a pool in percent at which guests may stop at any time.
const FULL: u64 = 97;

/// Result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// A check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Check {
    pub(super) subject: String,
    pub(super) verdict: Verdict,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

pub(super) fn ok(subject: impl Into<String>, message: impl Into<String>) -> Check {
    Check {
        subject: subject.into(),
        verdict: Verdict::Ok,
        message: message.into(),
        hint: None,
    }
}

impl Check {
    pub(super) fn with_hint(mut self, verdict: Verdict, hint: impl Into<String>) -> Self {
        self.verdict = verdict;
        self.hint = Some(hint.into());
        self
    }
}

/// Prints all checks; fails if one of them fails.
pub async fn run(context: &Context) -> Result<(), Failure> {
    let version = context.client.version().await?;
    let nodes = all_nodes(context).await?;
    let mut checks = vec![waifud(&version, env!("CARGO_PKG_VERSION"))];
    if let Some(server) = context.client.server().await? {
        checks.extend(server::checks(&server));
    }
    if nodes.is_empty() {
        checks.push(ok("nodes", "no node has joined").with_hint(
            Verdict::Fail,
            "start waifud-agentd on the machine that should run guests",
        ));
    }
    for one in &nodes {
        checks.extend(node(one));
    }
    checks.extend(images::image_check(&image::images(context).await?));
    for download in context.client.downloads().await?.items {
        let name = format!("download {}", download.name);
        let why = download.error.map(|error| error.title);
        match (download.state, why.or(download.waiting_for)) {
            (DownloadState::Failed, why) => {
                let why = why.unwrap_or_else(|| "failed".to_owned());
                let hint =
                    "see waifuctl template list; to retry, run the same template add command again";
                checks.push(ok(name, why).with_hint(Verdict::Warn, hint));
            }
            (DownloadState::Running | DownloadState::Other, Some(why)) => {
                let hint = "check the network; the download is retried automatically";
                checks.push(ok(name, why).with_hint(Verdict::Warn, hint));
            }
            (DownloadState::Running | DownloadState::Other, None) => {
                checks.push(ok(name, "in progress"));
            }
        }
    }
    let failed = checks.iter().filter(|c| c.verdict == Verdict::Fail).count();
    let items = serde_json::json!({"items": checks, "ok": failed == 0});
    context.printer.print(&items, || {
        checks
            .iter()
            .map(|check| format_check(context, check))
            .collect::<Vec<_>>()
            .join("\n")
    })?;
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::input(
        "doctor",
        format!("{failed} of {} checks failed", checks.len()),
    )
    .hint("see the hints above"))
}

fn waifud(version: &serde_json::Value, own: &str) -> Check {
    let field = |name: &str| version.get(name).and_then(|v| v.as_str()).unwrap_or("-");
    let check = ok(
        "waifud",
        format!(
            "version {}, database {}",
            field("version"),
            field("incarnation")
        ),
    );
    if field("version") == own {
        return check;
    }
    check.with_hint(
        Verdict::Warn,
        format!("this waifuctl has version {own}: install the same version of waifud and waifuctl"),
    )
}

fn node(node: &Node) -> Vec<Check> {
    let name = |what: &str| format!("node {}{what}", node.name);
    let state = ok(name(""), node.state.to_string());
    let mut checks = vec![if node.state == NodeState::Unreachable {
        let hint = "start the machine, or check that waifud-agentd is running on it; its guests may still be running";
        state.with_hint(Verdict::Fail, hint)
    } else {
        state
    }];
    if let Some(hypervisor) = &node.hypervisor {
        let check = ok(
            name(" hypervisor"),
            format!("{} ({})", hypervisor.kind.as_str(), hypervisor.reason),
        );
        checks.push(match hypervisor.kind {
            HypervisorKind::Kvm => check,
            HypervisorKind::Tcg => check.with_hint(Verdict::Warn, without_kvm(hypervisor.cause)),
        });
    }
    if let Some(backend) = node.mesh_backend {
        let message = match backend {
            MeshBackend::Kernel => "WireGuard of the kernel",
            MeshBackend::Userspace => "WireGuard in userspace",
            MeshBackend::Other => "WireGuard",
        };
        checks.push(ok(name(" mesh"), message));
    }
    if let Some(skew) = node.clock_skew_s.filter(|skew| skew.abs() >= SKEW_S) {
        checks.push(
            ok(
                name(" clock"),
                format!("{skew:+.0} s relative to waifud's clock"),
            )
            .with_hint(
                Verdict::Warn,
                "enable NTP on both machines: timedatectl set-ntp true",
            ),
        );
    }
    for pool in &node.pools {
        let full = percent(pool);
        let check = ok(
            name(&format!(" pool {}", pool.name)),
            format!("{full}% of {} in use, {}", pool.size_bytes, pool.health),
        );
        let hint = "free space on its filesystem, or delete unused instances";
        checks.push(if pool.health != "ok" {
            check.with_hint(Verdict::Fail, "repair its filesystem on the node")
        } else if full >= FULL {
            check.with_hint(Verdict::Fail, hint)
        } else if full >= NEAR_FULL {
            check.with_hint(Verdict::Warn, hint)
        } else {
            check
        });
    }
    checks.extend(node.conditions.iter().map(|condition| {
        let check = ok(
            name(&format!(" {}", condition.kind)),
            condition.message.clone(),
        );
        if condition.ok {
            return check;
        }
        // Low space is only a warning, and Redis only a cache.
        let verdict = if condition.reason == "low" || condition.kind == "redis" {
            Verdict::Warn
        } else {
            Verdict::Fail
        };
        let hint = if condition.kind == "destruction-held" {
            // A confirmation releases the held deletions, so objects to keep must be adopted before.
            format!(
                "adopt or delete the unmanaged objects that waifuctl node show {0} lists, then run waifuctl node confirm {0}",
                node.name
            )
        } else if condition.kind == "redis" {
            server::redis_hint("redis-nodes", &condition.reason).to_owned()
        } else {
            hint::of_node_condition(condition, &node.name)
                .unwrap_or_else(|| format!("waifuctl node show {}", node.name))
        };
        check.with_hint(verdict, hint)
    }));
    if !node.unmanaged.is_empty() {
        let message = format!(
            "found {} unmanaged domains or volumes",
            node.unmanaged.len()
        );
        let hint = format!(
            "waifuctl node show {} lists them; adopt or delete them",
            node.name
        );
        checks.push(ok(name(" unmanaged"), message).with_hint(Verdict::Warn, hint));
    }
    checks
}

/// A hint for a node without KVM, depending on the cause.
fn without_kvm(cause: Option<NoKvm>) -> &'static str {
    match cause {
        Some(NoKvm::Pvm) => {
            "guests are emulated and slow: this machine is itself a VM without usable KVM; run nodes on physical machines, or in a VM \
         with nested virtualization"
        }
        Some(NoKvm::NoCpuSupport) => {
            "guests are emulated and slow: enable virtualization in the firmware or, if this machine is a VM, nested virtualization"
        }
        Some(NoKvm::DeviceDenied) => {
            "guests are emulated and slow: allow libvirt's QEMU to open /dev/kvm (group kvm)"
        }
        Some(NoKvm::NoDevice) => {
            "guests are emulated and slow: check that /dev/kvm exists (modprobe kvm_intel or kvm_amd)"
        }
        Some(NoKvm::TestFailed | NoKvm::Other) | None => {
            "guests are emulated and slow: see the reason above"
        }
    }
}

fn format_check(context: &Context, check: &Check) -> String {
    let mark = match check.verdict {
        Verdict::Ok => context.printer.green("ok  "),
        Verdict::Warn => "warn".to_owned(),
        Verdict::Fail => context.printer.red("fail"),
    };
    let hint = check.hint.as_ref().map_or_else(String::new, |hint| {
        format!("\n       hint: {}", escape(hint))
    });
    format!(
        "{mark}   {}: {}{hint}",
        escape(&check.subject),
        escape(&check.message)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_node() -> Node {
        serde_json::from_value(serde_json::json!({
            "id": "0198c0de-0000-7000-8000-00000000abcd", "name": "alder", "state": "ready", "labels": {},
            "arch": "x86_64", "cpu_model": null, "hypervisor": {"kind": "kvm", "reason": "it works"},
            "agent_version": "0.1.0", "capacity": {"cpus": 4, "memory_bytes": 1}, "promised": {"cpus": 0, "memory_bytes": 0},
            "used": {"cpus": 0, "memory_bytes": 0}, "subnets": [], "bridges": [],
            "pools": [{"name": "main", "kind": "qcow2", "size_bytes": 1000, "used_bytes": 100, "promised_bytes": 0, "health": "ok"}],
            "last_contact": null, "clock_skew_s": 0.1, "conditions": [], "unmanaged": [], "confirmed": true
        }))
        .unwrap()
    }

    fn first_failed_check(node_as_it_is: &Node) -> (Verdict, bool) {
        let checks = node(node_as_it_is);
        let bad = checks.iter().find(|check| check.verdict != Verdict::Ok);
        bad.map_or((Verdict::Ok, true), |check| {
            (check.verdict, check.hint.is_some())
        })
    }

    #[test]
    fn the_hint_about_emulation_depends_on_the_cause() {
        assert!(without_kvm(Some(NoKvm::Pvm)).contains("nested virtualization"));
        assert!(without_kvm(Some(NoKvm::NoCpuSupport)).contains("firmware"));
        assert!(without_kvm(Some(NoKvm::DeviceDenied)).contains("group kvm"));
        assert!(without_kvm(Some(NoKvm::NoDevice)).contains("modprobe"));
        assert!(without_kvm(Some(NoKvm::TestFailed)).contains("reason above"));
        assert!(without_kvm(None).contains("reason above"));
    }

    type Defect = fn(&mut Node);

    #[test]
    fn a_healthy_node_is_ok_and_each_defect_has_a_hint() {
        assert_eq!(first_failed_check(&a_node()), (Verdict::Ok, true));
        let with = |change: Defect| {
            let mut node = a_node();
            change(&mut node);
            first_failed_check(&node)
        };
        let defects: [(Defect, Verdict); 6] = [
            (|n| n.state = NodeState::Unreachable, Verdict::Fail),
            (|n| n.clock_skew_s = Some(-90.0), Verdict::Warn),
            (|n| n.pools[0].used_bytes.0 = 900, Verdict::Warn),
            (|n| n.pools[0].used_bytes.0 = 990, Verdict::Fail),
            (|n| n.pools[0].health = "read-only".into(), Verdict::Fail),
            (
                |n| n.hypervisor.as_mut().unwrap().kind = HypervisorKind::Tcg,
                Verdict::Warn,
            ),
        ];
        for (defect, verdict) in defects {
            assert_eq!(with(defect), (verdict, true));
        }
    }

    #[test]
    fn a_condition_that_is_not_ok_is_a_failure_unless_space_is_only_low() {
        for (kind, reason, verdict, hint) in [
            ("foreign-firewall", "in-the-way", Verdict::Fail, "alder"),
            ("state-dir", "low", Verdict::Warn, "alder"),
            ("state-dir", "full", Verdict::Fail, "alder"),
            ("redis", "unreachable", Verdict::Warn, "start Redis"),
            (
                "destruction-held",
                "incarnation-changed",
                Verdict::Fail,
                "then run waifuctl node confirm alder",
            ),
        ] {
            let mut bad = a_node();
            let condition = |ok: bool| {
                let condition = serde_json::json!({"type": kind, "ok": ok, "reason": reason, "message": "what is wrong",
                    "since": "2026-11-22T00:00:00Z"});
                serde_json::from_value(condition).unwrap()
            };
            bad.conditions = vec![condition(false)];
            let subject = format!("node alder {kind}");
            let found = |of: &Node| {
                let mut checks = node(of).into_iter();
                checks.find(|check| check.subject == subject).unwrap()
            };
            let check = found(&bad);
            assert_eq!((check.verdict, &*check.message), (verdict, "what is wrong"));
            let said = check.hint.unwrap();
            assert!(said.contains(hint), "{said}");
            bad.conditions = vec![condition(true)];
            assert_eq!(found(&bad).verdict, Verdict::Ok);
        }
    }

    #[test]
    fn unmanaged_objects_are_a_warning_with_their_number() {
        let mut with = a_node();
        let unmanaged = |name: &str| {
            let unmanaged = serde_json::json!({"kind": "domain", "instance": "0198c0de-0000-7000-8000-00000000abce",
                "name": name, "volume": null, "running": true, "addresses": [], "adoptable": false});
            serde_json::from_value(unmanaged).unwrap()
        };
        with.unmanaged = vec![unmanaged("a"), unmanaged("b")];
        let checks = node(&with);
        let bad: Vec<_> = checks
            .iter()
            .filter(|check| check.verdict != Verdict::Ok)
            .collect();
        assert_eq!(bad.len(), 1);
        assert_eq!(bad[0].verdict, Verdict::Warn);
        assert!(bad[0].message.contains("2 unmanaged"), "{bad:?}");
        let hint = bad[0].hint.as_deref().unwrap();
        assert!(hint.contains("waifuctl node show alder"), "{hint}");
    }

    #[test]
    fn the_wireguard_of_a_node_in_a_mesh_is_shown() {
        let mesh = |backend| {
            let mut with = a_node();
            with.mesh_backend = backend;
            let mut checks = node(&with).into_iter();
            checks.find(|check| check.subject == "node alder mesh")
        };
        assert_eq!(mesh(None), None);
        let shown = mesh(Some(MeshBackend::Kernel)).unwrap();
        assert_eq!(
            (shown.verdict, &*shown.message),
            (Verdict::Ok, "WireGuard of the kernel")
        );
        let shown = mesh(Some(MeshBackend::Userspace)).unwrap();
        assert_eq!(shown.message, "WireGuard in userspace");
    }

    #[test]
    fn different_versions_are_a_warning() {
        let version = serde_json::json!({"version": "0.1.0", "incarnation": "0000000a"});
        assert_eq!(waifud(&version, "0.1.0").verdict, Verdict::Ok);
        assert_eq!(waifud(&version, "0.2.0").verdict, Verdict::Warn);
    }
}
