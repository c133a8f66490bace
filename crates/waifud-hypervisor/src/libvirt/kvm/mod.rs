//! Determines whether KVM works on this host: first by cheap checks, then by running a small test machine.
//!
//! A `/dev/kvm` that can be opened and libvirt's capabilities prove little: some hosts have both and cannot run
//! ordinary guests (PVM, which runs only kernels built for it; nested hosts that abort with `-cpu host`; wrong
//! permissions). So a test machine decides, see `boot`. Its result is cached on disk with everything that it may depend
//! on.

pub mod boot;
mod cache;

use std::path::Path;

use waifud_types::node::{HypervisorFacts, NoKvm};
use waifud_types::status::HypervisorKind;

use boot::Attempt;

/// Properties of the host that are known without running anything.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent properties of a host"
)]
pub struct HostFeatures {
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The CPU model as reported by the kernel.
    pub cpu_model: String,
    /// Whether the CPU announces VMX (Intel) or SVM (AMD).
    pub virtualization: bool,
    /// Whether the kernel module for PVM guests is loaded.
    pub pvm: bool,
    /// Whether a kernel module for ordinary guests is loaded.
    pub hardware_module: bool,
    /// Why `/dev/kvm` cannot be opened; `None` if it can.
    pub device_error: Option<String>,
    /// Whether the permission to open `/dev/kvm` is missing.
    #[serde(default)]
    pub device_denied: bool,
    /// libvirt's number for QEMU's version: 1,000,000 × major + 1,000 × minor + micro.
    pub qemu_version: u32,
    /// The current boot of the host. A failure is cached only until the next boot.
    pub boot_id: String,
}

impl HostFeatures {
    /// Reads the properties of this machine. Blocking, but short.
    pub fn detect(qemu_version: u32) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let line = |path: &str| read(path).trim().to_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let device = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm");
        let module = |name: &str| Path::new("/sys/module").join(name).exists();
        Self {
            kernel: line("/proc/sys/kernel/osrelease"),
            cpu_model: cpu_model(&cpuinfo),
            virtualization: has_flag(&cpuinfo, "vmx") || has_flag(&cpuinfo, "svm"),
            pvm: module("kvm_pvm"),
            hardware_module: module("kvm_intel") || module("kvm_amd"),
            device_denied: device
                .as_ref()
                .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied),
            device_error: device.err().map(|error| error.to_string()),
            qemu_version,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
        }
    }

    /// Why KVM cannot work; `None` if only the test machine can decide.
    pub fn obstacle(&self) -> Option<String> {
        if let Some(error) = &self.device_error {
            Some(format!("cannot open /dev/kvm ({error})"))
        } else if self.pvm && !self.hardware_module {
            Some("KVM on this host is PVM, which runs only kernels built for it".to_owned())
        } else if !self.virtualization {
            Some(
                "the CPU does not support hardware virtualization (it has neither vmx nor svm)"
                    .to_owned(),
            )
        } else {
            None
        }
    }

    /// The code of `obstacle`.
    fn obstacle_code(&self) -> Option<NoKvm> {
        if self.device_denied {
            Some(NoKvm::DeviceDenied)
        } else if self.device_error.is_some() {
            Some(NoKvm::NoDevice)
        } else if self.pvm && !self.hardware_module {
            Some(NoKvm::Pvm)
        } else if !self.virtualization {
            Some(NoKvm::NoCpuSupport)
        } else {
            None
        }
    }
}

/// The result of the probe, with the reason as a sentence.
pub fn facts(attempt: &Result<Attempt, String>) -> HypervisorFacts {
    match attempt {
        Ok(Attempt { duration }) => HypervisorFacts {
            kind: HypervisorKind::Kvm,
            reason: format!(
                "the test machine finished with KVM in {} ms",
                duration.as_millis()
            ),
            cause: None,
        },
        Err(why) => HypervisorFacts {
            kind: HypervisorKind::Tcg,
            reason: format!("guests are emulated, which is slow: {why}"),
            cause: None,
        },
    }
}

/// Determines the result: from the properties, from the cache, or by running the test machine.
pub async fn probe(features: HostFeatures, run: boot::Run, cache: &Path) -> HypervisorFacts {
    if std::env::consts::ARCH != "x86_64" {
        // The program of the test machine is for x86. Without the test, KVM is assumed not to work.
        return facts(&Err("waifud supports KVM on x86_64 only".to_owned()));
    }
    if let Some(why) = features.obstacle() {
        let mut facts = facts(&Err(why));
        facts.cause = features.obstacle_code();
        return facts;
    }
    if let Some(known) = cache::load(cache, &features) {
        return known;
    }
    let mut attempt = run.attempt().await;
    if attempt.is_err() {
        // The host may have been busy, as is usual after a boot, and this result is cached until the next boot.
        let retry = boot::Run {
            deadline: run.deadline * 3,
            ..run
        };
        attempt = retry.attempt().await;
    }
    let cause = attempt.is_err().then_some(NoKvm::TestFailed);
    let mut facts =
        facts(&attempt.map_err(|why| format!("the test machine failed with KVM: {why}")));
    facts.cause = cause;
    if let Err(error) = cache::store(cache, features, &facts) {
        // The next start only has to probe again.
        tracing::warn!(%error, cache = %cache.display(), "cannot cache the result of the KVM probe");
    }
    facts
}

fn cpu_model(cpuinfo: &str) -> String {
    // The field is "model name" on x86. Others have fewer fields, some of them "Model" or "Hardware".
    ["model name", "Model", "Hardware", "CPU part"]
        .iter()
        .find_map(|key| field(cpuinfo, key))
        .unwrap_or("unknown")
        .to_owned()
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    field(cpuinfo, "flags").is_some_and(|flags| flags.split_whitespace().any(|f| f == flag))
}

fn field<'a>(cpuinfo: &'a str, key: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn usable() -> HostFeatures {
        HostFeatures {
            virtualization: true,
            hardware_module: true,
            ..HostFeatures::default()
        }
    }

    #[test]
    fn each_host_feature_that_rules_out_kvm_has_its_own_reason() {
        assert_eq!(
            (usable().obstacle(), usable().obstacle_code()),
            (None, None)
        );
        let mut features = usable();
        features.device_error = Some("Permission denied".to_owned());
        assert!(features.obstacle().unwrap().contains("Permission denied"));
        assert_eq!(features.obstacle_code(), Some(NoKvm::NoDevice));
        features.device_denied = true;
        assert_eq!(features.obstacle_code(), Some(NoKvm::DeviceDenied));
        let mut features = usable();
        features.virtualization = false;
        assert!(features.obstacle().unwrap().contains("vmx"));
        assert_eq!(features.obstacle_code(), Some(NoKvm::NoCpuSupport));
        let mut features = usable();
        (features.pvm, features.hardware_module) = (true, false);
        assert!(features.obstacle().unwrap().contains("PVM"));
        assert_eq!(features.obstacle_code(), Some(NoKvm::Pvm));
        // Both modules are built in, so only the test machine can decide.
        features.hardware_module = true;
        assert_eq!(features.obstacle(), None);
    }

    #[test]
    fn fields_and_flags_of_cpuinfo_are_parsed() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu svm_lock vmxx sse\n\nprocessor\t: 1\n";
        assert_eq!(cpu_model(text), "AMD EPYC");
        assert!(has_flag(text, "sse"));
        assert!(!has_flag(text, "svm") && !has_flag(text, "vmx"));
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn the_reason_of_a_result_is_a_sentence() {
        let duration = Duration::from_millis(120);
        let success = facts(&Ok(Attempt { duration }));
        assert_eq!(success.kind, HypervisorKind::Kvm);
        assert_eq!(
            success.reason,
            "the test machine finished with KVM in 120 ms"
        );
        let failure = facts(&Err("a reason".to_owned()));
        assert_eq!(failure.kind, HypervisorKind::Tcg);
        assert_eq!(
            failure.reason,
            "guests are emulated, which is slow: a reason"
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[tokio::test]
    async fn a_single_failure_is_retried() {
        let directory = tempfile::tempdir().unwrap();
        // 85 is the exit code of a successful test machine.
        let text = "if [ -e $0.again ]; then exit 85; fi\ntouch $0.again\nexit 1";
        let script = boot::tests::script(directory.path(), text);
        let mut run = boot::Run::kvm(script, None);
        run.deadline = Duration::from_secs(10);
        let facts = probe(usable(), run, &directory.path().join("cache")).await;
        assert_eq!(facts.kind, HypervisorKind::Kvm, "{}", facts.reason);
    }
}
