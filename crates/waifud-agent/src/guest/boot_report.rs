//! What cloud-init's reporter sent in the current boot: its modules, their results, and whether the last stage has ended.
//!
//! The reporter sends events at every boot without marking its beginning: an early stage after a later one shows a new
//! boot. Names come from the guest and are only compared and displayed. A result does not change until the next boot, so
//! a guest that posts events without end cannot change the report without end. Stages run by hand after the boot are
//! ignored.

use jiff::SignedDuration;
use waifud_api::metadatad::CloudInitEvent;
use waifud_types::Timestamp;
use waifud_types::evidence::{MODULES_MAX, ModuleResult, ModuleSeen};

/// cloud-init's stages in their order.
const STAGES: [&str; 4] = [
    "init-local",
    "init-network",
    "modules-config",
    "modules-final",
];

/// The shortest possible boot: a stage that begins again earlier is not another boot.
const BOOT_MIN: SignedDuration = SignedDuration::from_secs(2);

/// The report of one boot; see the module documentation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BootReport {
    /// When the first event arrived.
    pub began: Option<Timestamp>,
    /// When the last event arrived.
    pub last: Option<Timestamp>,
    /// When the last stage ended, and its result.
    pub finished: Option<(Timestamp, ModuleResult)>,
    /// The latest stage with an event.
    stage: usize,
    modules: Vec<Module>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Module {
    seen: ModuleSeen,
    /// When it began, by the guest's clock, in microseconds.
    guest_start: Option<i64>,
}

impl BootReport {
    /// Adds an event. Returns whether it is the first one of a new boot.
    pub fn add(&mut self, event: &CloudInitEvent, at: Timestamp) -> bool {
        let (stage_name, module) = match event.name.split_once('/') {
            Some((stage, module)) => (stage, Some(module)),
            None => (event.name.as_str(), None),
        };
        // Anything else was started by hand, for example `cloud-init single`.
        let Some(stage) = STAGES.iter().position(|name| *name == stage_name) else {
            return false;
        };
        let long_ago = |began: Timestamp| at.duration_since(began) >= BOOT_MIN;
        let rebooted = self.began.is_some_and(long_ago) && self.is_of_another_boot(stage, event);
        if rebooted {
            *self = Self::default();
        } else if self.finished.is_some() {
            return false;
        }
        self.began.get_or_insert(at);
        self.last = Some(at);
        self.stage = self.stage.max(stage);
        match (module, event.result) {
            (Some(module), result) => self.module(
                &format!("{stage_name}/{}", plain(module)),
                result,
                event,
                at,
            ),
            (None, Some(result)) if stage + 1 == STAGES.len() => {
                self.finished = Some((at, result));
            }
            (None, _) => {}
        }
        rebooted
    }

    /// An early stage after a later one, or an early stage whose first module begins again, shows another boot. The last
    /// two stages do not: they may be run by hand in a booted guest (`cloud-init modules`).
    fn is_of_another_boot(&self, stage: usize, event: &CloudInitEvent) -> bool {
        let early = stage <= 1;
        let begins = event.result.is_none();
        // The end of a stage is reported after events of later stages, so only a beginning is considered.
        early
            && begins
            && (stage < self.stage
                || self.modules.iter().any(|module| {
                    module.seen.result.is_some() && is_named(&module.seen.name, &event.name)
                }))
    }

    fn module(
        &mut self,
        name: &str,
        result: Option<ModuleResult>,
        event: &CloudInitEvent,
        at: Timestamp,
    ) {
        let has_space = self.modules.len() < MODULES_MAX;
        let known = self
            .modules
            .iter_mut()
            .find(|module| module.seen.name == name);
        match (known, result) {
            (Some(module), Some(result)) if module.seen.result.is_none() => {
                module.seen.result = Some(result);
                module.seen.took_ms = Some(took(module, event, at));
            }
            (None, result) if has_space => self.modules.push(Module {
                seen: ModuleSeen {
                    name: name.to_owned(),
                    at,
                    result,
                    took_ms: None,
                },
                guest_start: event.guest_micros.filter(|_| result.is_none()),
            }),
            _ => {}
        }
    }

    /// The modules in the order of their beginnings.
    pub fn modules(&self) -> Vec<ModuleSeen> {
        self.modules
            .iter()
            .map(|module| module.seen.clone())
            .collect()
    }

    /// The running module: the last one that began and has not ended.
    pub fn running(&self) -> Option<&ModuleSeen> {
        if self.finished.is_some() {
            return None;
        }
        let mut open = self.modules.iter().rev().map(|module| &module.seen);
        open.find(|seen| seen.result.is_none())
    }

    /// Modules that failed. Searches for absent datasources fail by design and are excluded.
    pub fn failures(&self) -> impl Iterator<Item = &str> {
        self.ended(ModuleResult::Fail)
    }

    /// Modules that ended with warnings.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.ended(ModuleResult::Warn)
    }

    fn ended(&self, how: ModuleResult) -> impl Iterator<Item = &str> {
        let seen = self.modules.iter().map(|module| &module.seen);
        seen.filter(move |seen| seen.result == Some(how))
            .map(|seen| seen.name.as_str())
            .filter(|name| !name.contains("/search-") && !name.contains("/check-cache"))
    }
}

/// A module's name without the common prefix and with hyphens: cloud-init 25.1 writes `scripts_user`.
fn plain(module: &str) -> String {
    match module.strip_prefix("config-") {
        Some(module) => module.replace('_', "-"),
        None => module.to_owned(),
    }
}

fn is_named(recorded: &str, reported: &str) -> bool {
    reported
        .split_once('/')
        .zip(recorded.split_once('/'))
        .is_some_and(|(reported, recorded)| {
            reported.0 == recorded.0 && plain(reported.1) == recorded.1
        })
}

/// The duration by the guest's clock, or by ours if the guest's clock was set in between.
fn took(module: &Module, event: &CloudInitEvent, at: Timestamp) -> u64 {
    let ours = u64::try_from(at.duration_since(module.seen.at).as_millis()).unwrap_or(0);
    let theirs = module
        .guest_start
        .zip(event.guest_micros)
        .and_then(|(start, end)| u64::try_from(end.checked_sub(start)?).ok())
        .map(|micros| micros / 1000);
    // Events are delayed a little. A larger difference means that the clock was set.
    theirs
        .filter(|theirs| theirs.abs_diff(ours) < 10_000)
        .unwrap_or(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn event(line: &str) -> CloudInitEvent {
        let (name, result) = line.split_once(' ').unwrap();
        CloudInitEvent {
            name: name.to_owned(),
            result: match result {
                "begins" => None,
                "ok" => Some(ModuleResult::Success),
                "warn" => Some(ModuleResult::Warn),
                _ => Some(ModuleResult::Fail),
            },
            description: String::new(),
            guest_micros: None,
        }
    }

    fn report_of(lines: &[&str]) -> (BootReport, usize) {
        let mut report = BootReport::default();
        let mut boots = 0;
        for (second, line) in (0..).zip(lines) {
            boots += usize::from(report.add(&event(line), at(second)));
        }
        (report, boots)
    }

    /// What 22.4 posts in its first boot: the reporter is known once vendor-data was read.
    const FIRST: [&str; 8] = [
        "init-network/config-ssh begins",
        "init-network/config-ssh ok",
        "init-network ok",
        "modules-config/config-runcmd begins",
        "modules-config/config-runcmd ok",
        "modules-config ok",
        "modules-final/config-scripts-user begins",
        "modules-final/config-scripts-user fail",
    ];

    #[test]
    fn modules_have_a_result_and_a_duration() {
        let (mut report, _) = report_of(&FIRST[..6]);
        let started = event(FIRST[6]);
        let mut ended = event(FIRST[7]);
        report.add(
            &CloudInitEvent {
                guest_micros: Some(1_000_000),
                ..started
            },
            at(7),
        );
        assert_eq!(report.running().unwrap().name, "modules-final/scripts-user");
        ended.guest_micros = Some(3_500_000);
        report.add(&ended, at(10));
        assert_eq!(report.running(), None);
        let modules = report.modules();
        assert_eq!(modules.len(), 3);
        assert_eq!(modules[2].took_ms, Some(2500));
        assert_eq!(
            report.failures().collect::<Vec<_>>(),
            ["modules-final/scripts-user"]
        );
        assert_eq!(report.finished, None);
        report.add(&event("modules-final fail"), at(11));
        assert_eq!(report.finished, Some((at(11), ModuleResult::Fail)));
    }

    #[test]
    fn setting_the_guests_clock_does_not_distort_a_duration() {
        let mut report = BootReport::default();
        let mut one = event("modules-final/config-ntp begins");
        one.guest_micros = Some(1);
        report.add(&one, at(100));
        let mut end = event("modules-final/config-ntp ok");
        end.guest_micros = Some(1_700_000_000_000_000);
        report.add(&end, at(103));
        assert_eq!(report.modules()[0].took_ms, Some(3000));
    }

    #[test]
    fn an_early_stage_that_begins_again_is_another_boot() {
        let mut lines = FIRST.to_vec();
        lines.push("modules-final fail");
        let again = [
            "init-local/check-cache begins",
            "init-local/check-cache ok",
            "init-local/search-OpenStackLocal begins",
            "init-local/search-OpenStackLocal fail",
            "init-network/check-cache begins",
        ];
        lines.extend(again);
        let (report, boots) = report_of(&lines);
        assert_eq!(boots, 1);
        assert_eq!(report.began, Some(at(9)));
        assert_eq!(report.finished, None);
        assert_eq!(report.failures().count(), 0, "a search may find nothing");

        // Reset in the middle of its first boot.
        let (_, boots) = report_of(&[FIRST[0], FIRST[1], FIRST[0]]);
        assert_eq!(boots, 1);

        // Nothing boots in no time: a flood of beginnings is one boot.
        let mut report = BootReport::default();
        let mut boots = 0;
        for n in 0..1000 {
            let line = [
                "init-network/config-ssh begins",
                "init-network/config-ssh ok",
            ][n % 2];
            boots += usize::from(report.add(&event(line), at(0)));
        }
        assert_eq!(boots, 0);
    }

    #[test]
    fn stages_run_by_hand_are_not_a_boot() {
        let mut lines = FIRST.to_vec();
        lines.extend([
            "modules-final fail",
            "single/config-ssh begins",
            "modules-final/config-scripts-user begins",
        ]);
        lines.extend(["modules-final/config-scripts-user ok", "modules-final ok"]);
        let (report, boots) = report_of(&lines);
        assert_eq!(boots, 0);
        assert_eq!(report.failures().count(), 1, "the boot's own");
        assert_eq!(report.finished, Some((at(8), ModuleResult::Fail)));
    }

    #[test]
    fn a_flood_of_names_is_bounded() {
        let mut report = BootReport::default();
        for n in 0..10_000 {
            report.add(&event(&format!("modules-final/config-{n} begins")), at(n));
        }
        assert_eq!(report.modules().len(), MODULES_MAX);
    }
}
