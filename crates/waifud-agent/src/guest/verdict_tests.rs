//! Every datasource × {agent, no agent} × {console, no console} × {first boot, reboot, host reboot, failed script, failed package}: the state while
//! cloud-init runs and at its end, with the sequence of events of a real guest.

use std::time::Duration;

use waifud_api::agent::AgentInstance;
use waifud_api::metadatad::CloudInitEvent;
use waifud_types::Timestamp;
use waifud_types::evidence::ModuleResult;
use waifud_types::spec::{Unreported, UserDataFacts};
use waifud_types::status::{CloudInitState, CloudInitStatus, ReadyBy};
use waifud_types::template::Datasource;

use crate::control_link::record::{BootMemory, Memory, RunMemory};
use crate::fake::sample_instance;
use crate::guest::console_end::ConsoleReport;
use crate::guest::evidence::Evidence;
use crate::guest::readiness::{Readiness, reset_for_boot, since};
use crate::guest::verdict::expects;

const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Clone, Copy, PartialEq, Debug)]
enum Case {
    FirstBoot,
    Reboot,
    HostReboot,
    FailedScript,
    FailedPackage,
}

const CASES: [Case; 5] = [
    Case::FirstBoot,
    Case::Reboot,
    Case::HostReboot,
    Case::FailedScript,
    Case::FailedPackage,
];

/// A guest, its node's agent, and the time.
#[expect(
    clippy::struct_excessive_bools,
    reason = "a guest's abilities and actions are named individually"
)]
struct Guest {
    want: AgentInstance,
    has_agent: bool,
    reports: bool,
    reads_vendor_data: bool,
    /// Whether cloud-init's messages reach the console.
    has_console: bool,
    console: ConsoleReport,
    called: bool,
    memory: Memory,
    evidence: Evidence,
    readiness: Readiness,
    now: Timestamp,
}

impl Guest {
    fn new(datasource: Datasource, has_agent: bool) -> Self {
        let mut want = sample_instance("web");
        want.datasource = datasource;
        want.spec.nics[0].address = Some([10, 144, 1, 12].into());
        let reads_vendor_data = datasource != Datasource::Ec2;
        Self {
            want,
            has_agent,
            reports: reads_vendor_data,
            reads_vendor_data,
            has_console: false,
            console: ConsoleReport::default(),
            called: false,
            memory: Memory::default(),
            evidence: Evidence::default(),
            readiness: readiness(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    fn with_user_data(mut self, unreported: Unreported) -> Self {
        self.want.spec.user_data = Some(UserDataFacts {
            size_bytes: 1,
            sha256: self.want.bundle.digest,
            unreported: Some(unreported),
            replaces_final_message: false,
        });
        self.reports = false;
        self.reads_vendor_data &= unreported != Unreported::VendorDataDisabled;
        self
    }

    fn with_console(mut self) -> Self {
        self.has_console = true;
        self
    }

    /// After its first boot, with a console and without an agent.
    fn booted(datasource: Datasource) -> Self {
        let mut guest = Self::new(datasource, false).with_console();
        guest.start();
        guest.boot(true, None);
        guest
    }

    /// A boot begins, whose lines on the console are told apart from earlier ones.
    fn clear_console(&mut self) {
        self.console = ConsoleReport {
            boot: since(&self.memory),
            ..ConsoleReport::default()
        };
    }

    /// The node starts the guest.
    fn start(&mut self) {
        self.pass(60);
        self.evidence.report = crate::guest::boot_report::BootReport::default();
        self.evidence.booted_again = None;
        self.memory.run = RunMemory::Started;
        self.memory.start.started_at = Some(self.now);
        self.memory.documents = Some(self.want.bundle.digest);
        self.memory.start.booted_at = None;
        self.memory.boot = BootMemory::default();
        self.readiness.probe_again();
        self.clear_console();
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.checked_add(Duration::from_secs(seconds)).unwrap();
    }

    fn post(&mut self, name: &str, result: Option<ModuleResult>) {
        self.pass(1);
        if !self.reports {
            return;
        }
        let event = CloudInitEvent {
            name: name.to_owned(),
            result,
            description: String::new(),
            guest_micros: None,
        };
        if self.evidence.report.add(&event, self.now) {
            self.evidence.booted_again = Some(self.now);
        }
    }

    fn module(&mut self, name: &str, result: ModuleResult) {
        self.post(name, None);
        self.post(name, Some(result));
    }

    /// What the driver does in every pass. The guest's agent answers with these values.
    #[track_caller]
    fn expect(&self, state: CloudInitState, ready_by: Option<ReadyBy>) {
        assert_eq!(self.state(), (state, ready_by));
    }

    fn probe(&mut self, state: CloudInitState, errors: &[&str]) {
        self.readiness.update_evidence(&self.evidence);
        let found = self.has_agent.then(|| CloudInitStatus {
            state,
            datasource: Some("DataSource".to_owned()),
            errors: errors.iter().map(|&text| text.to_owned()).collect(),
            ..CloudInitStatus::default()
        });
        let now = self.now;
        self.readiness.probed(found, now);
        self.learn();
    }

    fn learn_after(&mut self, seconds: u64) {
        self.pass(seconds);
        self.learn();
    }

    fn learn(&mut self) {
        let expects = expects(&self.want, &self.memory);
        self.readiness.learn(
            &mut self.memory,
            &self.evidence,
            &self.console,
            expects,
            self.now,
        );
    }

    /// After a silence for as long as is allowed, the state of cloud-init is unknown.
    fn becomes_unknown(&mut self) {
        self.learn_after(PATIENCE.as_secs());
        let expected = (CloudInitState::Unknown, None);
        assert_eq!(self.state(), expected, "{:?}", self.want.datasource);
    }

    fn is_ready(&self) -> bool {
        self.memory.boot.ready_by.is_some()
    }

    fn state(&self) -> (CloudInitState, Option<ReadyBy>) {
        (self.memory.boot.cloud_init.state, self.memory.boot.ready_by)
    }

    /// One boot from the first stage to the end. The guest is not ready before that.
    fn boot(&mut self, first: bool, failing: Option<&str>) {
        self.pass(10);
        if !first {
            // The reporter is known from the previous boot, so it posts from the beginning.
            self.module("init-local/check-cache", ModuleResult::Success);
            self.module("init-local/search-OpenStackLocal", ModuleResult::Fail);
        }
        self.console.began = self.has_console;
        let served = "/openstack/latest/meta_data.json".to_owned();
        self.evidence.last = Some((served, 200, self.now));
        self.module("init-network/config-ssh", ModuleResult::Success);
        self.probe(CloudInitState::Running, &[]);
        assert!(!self.is_ready(), "init");
        self.module("modules-config/config-runcmd", ModuleResult::Success);
        let mut failed = false;
        for module in ["package_update_upgrade_install", "scripts-user"] {
            let fails = failing == Some(module);
            failed |= fails;
            let result = if fails {
                ModuleResult::Fail
            } else {
                ModuleResult::Success
            };
            self.module(&format!("modules-final/config-{module}"), result);
            self.probe(CloudInitState::Running, &[]);
            assert!(!self.is_ready(), "{module}");
        }
        if self.reads_vendor_data && !self.called {
            self.called = true;
            self.pass(1);
            self.evidence.phoned_home = Some((self.now, Some("i-1".to_owned())));
            self.probe(CloudInitState::Running, &[]);
            let by_call = !self.has_agent && !self.reports;
            assert_eq!(self.is_ready(), by_call, "the call comes before the end");
        }
        self.module("modules-final/config-final-message", ModuleResult::Success);
        let result = if failed {
            ModuleResult::Fail
        } else {
            ModuleResult::Success
        };
        if self.has_console {
            self.console.finished = Some(self.now);
            self.console.datasource = Some("DataSource".to_owned());
        }
        self.post("modules-final", Some(result));
        match (failed, failing) {
            (true, Some(module)) => self.probe(CloudInitState::Error, &[module]),
            _ => self.probe(CloudInitState::Done, &[]),
        }
    }
}

fn readiness() -> Readiness {
    Readiness::new(Duration::from_secs(1), Duration::from_secs(1), PATIENCE)
}

fn run(guest: &mut Guest, case: Case) {
    guest.start();
    let failing = match case {
        Case::FailedScript => Some("scripts-user"),
        Case::FailedPackage => Some("package_update_upgrade_install"),
        Case::FirstBoot | Case::Reboot | Case::HostReboot => None,
    };
    guest.boot(true, failing);
    match case {
        Case::Reboot => {
            guest.pass(60);
            // A reset, as the driver receives it.
            guest.evidence.report = crate::guest::boot_report::BootReport::default();
            reset_for_boot(&mut guest.memory, Some(guest.now));
            guest.readiness.probe_again();
            guest.clear_console();
            assert!(!guest.is_ready());
            guest.boot(false, None);
        }
        Case::HostReboot => {
            // State in memory is lost; the record stays.
            guest.evidence = Evidence::default();
            guest.readiness = readiness();
            guest.start();
            guest.boot(false, None);
        }
        Case::FirstBoot | Case::FailedScript | Case::FailedPackage => {}
    }
}

#[test]
fn every_datasource_with_and_without_agent_and_console_in_every_kind_of_boot() {
    for datasource in Datasource::ALL {
        for (has_agent, has_console) in [(true, true), (true, false), (false, true), (false, false)]
        {
            for case in CASES {
                let mut guest = Guest::new(datasource, has_agent);
                guest.has_console = has_console;
                run(&mut guest, case);
                let row =
                    format!("{datasource:?}, agent {has_agent}, console {has_console}, {case:?}");
                let ends = match case {
                    Case::FailedScript | Case::FailedPackage => CloudInitState::Error,
                    _ => CloudInitState::Done,
                };
                let mut knows_result = true;
                if has_agent {
                    assert_eq!(guest.state(), (ends, Some(ReadyBy::GuestAgent)), "{row}");
                } else if datasource != Datasource::Ec2 {
                    assert_eq!(guest.state(), (ends, Some(ReadyBy::Reporter)), "{row}");
                } else if has_console {
                    let by_console = (CloudInitState::Done, Some(ReadyBy::Console));
                    assert_eq!(guest.state(), by_console, "{row}");
                    let named = guest.memory.boot.cloud_init.datasource.as_deref();
                    assert_eq!(named, Some("DataSource"), "{row}");
                    knows_result = false;
                } else {
                    assert!(!guest.is_ready(), "{row}");
                    guest.learn_after(PATIENCE.as_secs());
                    assert_eq!(guest.state(), (CloudInitState::Unknown, None), "{row}");
                    let because = guest.memory.boot.cloud_init.unknown_because.clone();
                    assert!(because.unwrap().contains("EC2"), "{row}");
                    knows_result = false;
                }
                let errors = &guest.memory.boot.cloud_init.errors;
                let named = |module: &str| errors.iter().any(|error| error.contains(module));
                match case {
                    Case::FailedScript if knows_result => {
                        assert!(named("scripts-user"), "{row}: {errors:?}");
                    }
                    Case::FailedPackage if knows_result => {
                        assert!(named("package"), "{row}: {errors:?}");
                    }
                    _ => assert!(errors.is_empty(), "{row}: {errors:?}"),
                }
            }
        }
    }
}

#[test]
fn without_a_reporter_the_console_shows_the_end_of_every_boot() {
    for unreported in [
        Unreported::ReporterOverridden,
        Unreported::VendorDataDisabled,
    ] {
        for datasource in Datasource::ALL {
            let mut guest = Guest::new(datasource, false)
                .with_user_data(unreported)
                .with_console();
            let row = format!("{datasource:?}, {unreported:?}");
            for first in [true, false] {
                guest.start();
                // The first stage shows that the end may come much later.
                guest.console.began = true;
                guest.learn_after(PATIENCE.as_secs() * 5);
                guest.expect(CloudInitState::Running, None);
                guest.boot(first, Some("scripts-user"));
                let by_console = (CloudInitState::Done, Some(ReadyBy::Console));
                assert_eq!(guest.state(), by_console, "{row}, first {first}");
            }
        }
    }
}

#[test]
fn a_replaced_final_message_is_not_waited_for() {
    let mut guest = Guest::new(Datasource::Openstack, false)
        .with_user_data(Unreported::VendorDataDisabled)
        .with_console();
    let facts = guest.want.spec.user_data.as_mut().unwrap();
    facts.replaces_final_message = true;
    guest.start();
    guest.console.began = true;
    guest.learn_after(PATIENCE.as_secs() + 1);
    guest.expect(CloudInitState::Unknown, None);
}

#[test]
fn a_guest_with_a_login_prompt_and_no_sign_of_cloud_init_is_not_waited_for() {
    for datasource in Datasource::ALL {
        let mut guest = Guest::new(datasource, false).with_console();
        guest.start();
        guest.pass(20);
        guest.console.login = Some(guest.now);
        guest.learn();
        guest.expect(CloudInitState::Pending, None);
        guest.learn_after(PATIENCE.as_secs() / 2);
        guest.expect(CloudInitState::Unknown, None);
        let because = guest.memory.boot.cloud_init.unknown_because.clone();
        assert!(because.unwrap().contains("login prompt"));
        guest.console.began = true;
        guest.learn();
        assert_eq!(guest.state().0, CloudInitState::Running, "{datasource:?}");
    }
}

#[test]
fn the_console_of_another_boot_and_of_an_unknown_one_proves_nothing() {
    let mut guest = Guest::booted(Datasource::Ec2);
    let earlier = guest.console.clone();
    guest.start();
    for boot in [earlier.boot, None] {
        guest.console = ConsoleReport {
            boot,
            ..earlier.clone()
        };
        guest.pass(5);
        guest.probe(CloudInitState::Done, &[]);
        guest.expect(CloudInitState::Pending, None);
    }
}

#[test]
fn when_the_reporters_last_event_is_lost_the_console_ends_the_boot_after_a_while() {
    let mut guest = Guest::booted(Datasource::Openstack);
    guest.start();
    guest.module("modules-final/config-scripts-user", ModuleResult::Fail);
    guest.console.finished = Some(guest.now);
    guest.probe(CloudInitState::Running, &[]);
    guest.expect(CloudInitState::Running, None);
    guest.learn_after(120);
    guest.expect(CloudInitState::Error, Some(ReadyBy::Console));
}

#[test]
fn user_data_that_disables_the_reporter_is_reported_and_not_waited_for() {
    for datasource in Datasource::ALL {
        // phone_home is sent at the first boot only.
        let mut guest =
            Guest::new(datasource, false).with_user_data(Unreported::ReporterOverridden);
        guest.start();
        guest.boot(true, Some("scripts-user"));
        if datasource != Datasource::Ec2 {
            let by_call = (CloudInitState::Done, Some(ReadyBy::PhoneHome));
            assert_eq!(guest.state(), by_call, "{datasource:?}");
        }
        guest.start();
        guest.boot(false, None);
        assert!(!guest.is_ready(), "{datasource:?}");
        guest.becomes_unknown();

        let mut guest =
            Guest::new(datasource, false).with_user_data(Unreported::VendorDataDisabled);
        guest.start();
        guest.boot(true, None);
        guest.becomes_unknown();
        let because = guest
            .memory
            .boot
            .cloud_init
            .unknown_because
            .clone()
            .unwrap();
        assert!(
            because.contains("the guest agent does not answer"),
            "{because}"
        );
        // An agent that starts late still reports it.
        guest.has_agent = true;
        guest.probe(CloudInitState::Done, &[]);
        assert_eq!(
            guest.state(),
            (CloudInitState::Done, Some(ReadyBy::GuestAgent))
        );
        assert_eq!(guest.memory.boot.cloud_init.unknown_because, None);
    }
}

#[test]
fn probes_before_the_end_do_not_use_up_the_probes_after_it() {
    let mut guest = Guest::new(Datasource::Openstack, false);
    guest.start();
    for _ in 0..100 {
        guest.pass(1);
        guest.probe(CloudInitState::Running, &[]);
    }
    guest.boot(true, None);
    assert_eq!(guest.state().1, Some(ReadyBy::Reporter));
    assert!(
        !guest.readiness.is_final(&guest.memory),
        "its agent may still come"
    );
    // It does, and reports the end: the last script failed.
    guest.has_agent = true;
    guest.probe(CloudInitState::Error, &["('scripts-user', boom)"]);
    guest.expect(CloudInitState::Error, Some(ReadyBy::GuestAgent));
    assert!(guest.readiness.is_final(&guest.memory));
}

#[test]
fn a_source_that_goes_silent_does_not_revoke_readiness_in_the_same_boot() {
    let mut guest = Guest::new(Datasource::Openstack, true);
    run(&mut guest, Case::FailedScript);
    guest.has_agent = false;
    guest.pass(60);
    guest.probe(CloudInitState::Running, &[]);
    guest.expect(CloudInitState::Error, Some(ReadyBy::GuestAgent));
}

#[test]
fn an_unreported_reboot_shows_in_the_stages_or_in_the_guests_files() {
    let mut by_stage = Guest::new(Datasource::Openstack, false);
    run(&mut by_stage, Case::FirstBoot);
    by_stage.boot(false, Some("scripts-user"));
    by_stage.expect(CloudInitState::Error, Some(ReadyBy::Reporter));

    let mut by_files = Guest::new(Datasource::Ec2, true);
    run(&mut by_files, Case::FirstBoot);
    by_files.boot(false, None);
    by_files.expect(CloudInitState::Done, Some(ReadyBy::GuestAgent));
}

#[test]
fn boots_repeated_after_a_restart_of_the_agent_change_nothing() {
    let mut guest = Guest::new(Datasource::Openstack, false);
    run(&mut guest, Case::FirstBoot);
    guest.boot(false, None);
    let before = guest.memory.clone();
    assert!(guest.evidence.booted_again.is_some());
    guest.readiness = readiness();
    guest.probe(CloudInitState::Done, &[]);
    assert_eq!(guest.memory, before);
}

#[test]
fn when_the_last_event_is_lost_phone_home_ends_the_boot_after_a_while_with_its_failures() {
    let mut guest = Guest::new(Datasource::Openstack, false);
    guest.start();
    guest.module("modules-final/config-scripts-user", ModuleResult::Fail);
    guest.pass(1);
    guest.evidence.phoned_home = Some((guest.now, Some("i-1".to_owned())));
    guest.probe(CloudInitState::Running, &[]);
    assert_eq!(guest.state(), (CloudInitState::Running, None));
    guest.learn_after(120);
    guest.expect(CloudInitState::Error, Some(ReadyBy::PhoneHome));
    assert_eq!(
        guest.memory.boot.cloud_init.instance_id.as_deref(),
        Some("i-1")
    );
}

#[test]
fn phone_home_or_a_report_of_an_earlier_run_proves_nothing() {
    let mut guest = Guest::new(Datasource::Openstack, false);
    run(&mut guest, Case::FirstBoot);
    let evidence = guest.evidence.clone();
    guest.start();
    guest.evidence = evidence;
    guest.pass(5);
    guest.probe(CloudInitState::Done, &[]);
    assert_eq!(guest.state(), (CloudInitState::Pending, None));
}

#[test]
fn only_the_first_phone_home_of_a_boot_is_recorded() {
    let mut guest =
        Guest::new(Datasource::Openstack, false).with_user_data(Unreported::ReporterOverridden);
    run(&mut guest, Case::FirstBoot);
    let before = guest.memory.clone();
    guest.pass(1);
    guest.evidence.phoned_home = Some((guest.now, Some("i-2".to_owned())));
    guest.probe(CloudInitState::Done, &[]);
    assert_eq!(guest.memory, before);
}

#[test]
fn a_guest_whose_cloud_init_fell_back_to_no_datasource_never_becomes_ready() {
    let fallback = "DataSourceNone";
    for (has_agent, called) in [(true, false), (false, false), (false, true)] {
        let row = format!("agent {has_agent}, called {called}");
        let mut guest = Guest::new(Datasource::Ec2, has_agent).with_console();
        guest.start();
        guest.console.began = true;
        guest.pass(30);
        guest.console.finished = Some(guest.now);
        guest.console.datasource = Some(fallback.to_owned());
        if called {
            guest.evidence.phoned_home = Some((guest.now, Some("i-1".to_owned())));
        }
        for _ in 0..100 {
            let found = has_agent.then(|| CloudInitStatus {
                state: CloudInitState::Done,
                datasource: Some(fallback.to_owned()),
                ..CloudInitStatus::default()
            });
            guest.readiness.probed(found, guest.now);
            guest.learn();
            assert_eq!(guest.state(), (CloudInitState::Error, None), "{row}");
            guest.pass(PATIENCE.as_secs());
        }
        let seen = &guest.memory.boot.cloud_init;
        assert_eq!(seen.datasource.as_deref(), Some(fallback), "{row}");
        assert!(
            seen.errors[0].contains(fallback),
            "{row}: {:?}",
            seen.errors
        );
    }
}
