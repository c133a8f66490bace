//! Whether KVM truly works here: cheap signs first, then a small machine that has to get something done.
//!
//! `/dev/kvm` that opens and libvirt's capabilities prove little: some hosts have both and start no ordinary guest
//! (PVM, which runs only kernels made for it; nested hosts that abort at `-cpu host`; permissions). So the last word has
//! a test machine, see `boot`. What it said is remembered on disk, with everything that it may depend on.

pub mod boot;
mod memory;

use std::path::Path;

use waifud_types::node::HypervisorFacts;
use waifud_types::status::HypervisorKind;

use boot::Attempt;

/// What the host looks like, before anything is run.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Signs {
    /// `uname -r`.
    pub kernel: String,
    /// As the kernel names it.
    pub cpu_model: String,
    /// Whether the CPU announces VMX (Intel) or SVM (AMD).
    pub virtualisation: bool,
    /// Whether the module that runs PVM guests is there.
    pub pvm: bool,
    /// Whether a module that runs ordinary guests is there.
    pub hardware_module: bool,
    /// Why `/dev/kvm` can't be opened; null when it can.
    pub device_error: Option<String>,
    /// libvirt's number for QEMU's version: 1,000,000 × major + 1,000 × minor + micro.
    pub qemu_version: u32,
    /// This run of the kernel; a failure is believed until the next one only.
    pub boot_id: String,
}

impl Signs {
    /// Looks at the machine. Blocking, but without waiting for anything.
    pub fn look(qemu_version: u32) -> Self {
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
            virtualisation: has_flag(&cpuinfo, "vmx") || has_flag(&cpuinfo, "svm"),
            pvm: module("kvm_pvm"),
            hardware_module: module("kvm_intel") || module("kvm_amd"),
            device_error: device.err().map(|error| error.to_string()),
            qemu_version,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
        }
    }

    /// Why it is not worth running anything; `None` when it is.
    pub fn hopeless(&self) -> Option<String> {
        if let Some(error) = &self.device_error {
            Some(format!("/dev/kvm can't be opened ({error})"))
        } else if self.pvm && !self.hardware_module {
            Some("this host's KVM is PVM, which runs only kernels made for it".to_owned())
        } else if !self.virtualisation {
            Some("the CPU offers no hardware virtualisation (neither vmx nor svm)".to_owned())
        } else {
            None
        }
    }
}

/// The answer, with its reason in a sentence.
pub fn verdict(attempt: &Result<Attempt, String>) -> HypervisorFacts {
    match attempt {
        Ok(Attempt { took }) => HypervisorFacts {
            kind: HypervisorKind::Kvm,
            reason: format!(
                "a test machine ran under KVM and was done in {} ms",
                took.as_millis()
            ),
        },
        Err(why) => HypervisorFacts {
            kind: HypervisorKind::Tcg,
            reason: format!("guests are emulated, which is slow: {why}"),
        },
    }
}

/// Finds the answer: by the signs, by what is remembered, or by running the test machine.
pub async fn decide(signs: Signs, run: boot::Run, cache: &Path) -> HypervisorFacts {
    if std::env::consts::ARCH != "x86_64" {
        // The test machine's program is for x86; without proof nothing is claimed.
        return verdict(&Err("KVM is probed on x86_64 only".to_owned()));
    }
    if let Some(why) = signs.hopeless() {
        return verdict(&Err(why));
    }
    if let Some(known) = memory::recall(cache, &signs) {
        return known;
    }
    let mut attempt = run.attempt().await;
    if attempt.is_err() {
        // Perhaps the host was busy, as hosts are at their start; and this answer is believed until the next one.
        let patient = boot::Run {
            deadline: run.deadline * 3,
            ..run
        };
        attempt = patient.attempt().await;
    }
    let facts = verdict(&attempt.map_err(|why| format!("a test machine under KVM failed: {why}")));
    if let Err(error) = memory::remember(cache, signs, &facts) {
        // It only costs the next start a probe.
        tracing::warn!(%error, cache = %cache.display(), "the answer of the KVM probe can't be kept");
    }
    facts
}

fn cpu_model(cpuinfo: &str) -> String {
    // x86 says "model name"; others say little, some "Model" or "Hardware".
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

    fn good() -> Signs {
        Signs {
            virtualisation: true,
            hardware_module: true,
            ..Signs::default()
        }
    }

    #[test]
    fn cheap_signs_rule_hopeless_hosts_out_each_with_its_reason() {
        assert_eq!(good().hopeless(), None);
        let mut signs = good();
        signs.device_error = Some("Permission denied".to_owned());
        assert!(signs.hopeless().unwrap().contains("Permission denied"));
        let mut signs = good();
        signs.virtualisation = false;
        assert!(signs.hopeless().unwrap().contains("vmx"));
        let mut signs = good();
        (signs.pvm, signs.hardware_module) = (true, false);
        assert!(signs.hopeless().unwrap().contains("PVM"));
        // Both modules built in: only running something tells.
        signs.hardware_module = true;
        assert_eq!(signs.hopeless(), None);
    }

    #[test]
    fn cpuinfo_is_read_by_field() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu svm_lock vmxx sse\n\nprocessor\t: 1\n";
        assert_eq!(cpu_model(text), "AMD EPYC");
        assert!(has_flag(text, "sse"));
        assert!(!has_flag(text, "svm") && !has_flag(text, "vmx"));
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn verdicts_read_as_sentences() {
        let took = Duration::from_millis(120);
        let yes = verdict(&Ok(Attempt { took }));
        assert_eq!(yes.kind, HypervisorKind::Kvm);
        assert_eq!(
            yes.reason,
            "a test machine ran under KVM and was done in 120 ms"
        );
        let no = verdict(&Err("of a reason".to_owned()));
        assert_eq!(no.kind, HypervisorKind::Tcg);
        assert_eq!(no.reason, "guests are emulated, which is slow: of a reason");
    }

    #[cfg(target_arch = "x86_64")]
    #[tokio::test]
    async fn one_failure_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("qemu");
        // 85 is how the test machine ends when it has done its work.
        let text = "#!/bin/sh\nif [ -e $0.again ]; then exit 85; fi\ntouch $0.again\nexit 1\n";
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let mut run = boot::Run::kvm(script, None);
        run.deadline = Duration::from_secs(10);
        let facts = decide(good(), run, &directory.path().join("cache")).await;
        assert_eq!(facts.kind, HypervisorKind::Kvm, "{}", facts.reason);
    }
}
