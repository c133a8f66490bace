//! The simulation itself: runs hold, can be repeated, and find planted bugs.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use waifud_kit::planted_bugs::Bug;

/// How long random seeds are run. What is asserted of a run does not depend on the time that it takes.
const RANDOM_SEEDS: Duration = Duration::from_mins(1);

/// A bug has to be found within this many seeds.
const SEEDS: u64 = 50;

fn sim(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_waifud-sim");
    Command::new(program).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

/// The word after this one.
fn after<'a>(text: &'a str, word: &str) -> &'a str {
    let rest = text.split_once(word).map(|(_, rest)| rest);
    let found = rest.and_then(|rest| rest.split_whitespace().next());
    found.unwrap_or_else(|| panic!("no {word:?} in {text}"))
}

#[test]
fn every_invariant_holds_for_the_first_seeds() {
    let output = sim(&["--seeds", "6", "--steps", "40"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).ends_with("6 seeds of 40 steps: every invariant held\n"));
}

/// Other seeds each time. A failed one is in the message, with the command that repeats it.
#[test]
fn every_invariant_holds_for_random_seeds() {
    let begun = Instant::now();
    let work = || {
        while begun.elapsed() < RANDOM_SEEDS {
            let seed = rand::random::<u32>().to_string();
            println!("seed {seed}");
            let output = sim(&["--seed", &seed, "--steps", "100"]);
            assert!(output.status.success(), "{}", text(&output));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
}

#[test]
fn every_invariant_looks_at_something_and_every_act_happens() {
    let output = sim(&["--seeds", "8", "--steps", "200"]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for act in waifud_sim::acts::all_names() {
        assert!(text.contains(&format!(" {act} ")), "{act}: {text}");
    }
    for invariant in waifud_sim::invariants::ALL {
        let line = text
            .lines()
            .find(|line| line.trim_end().ends_with(invariant));
        let count = line.and_then(|line| line.split_whitespace().next());
        let count: u64 = count.unwrap().parse().unwrap();
        assert!(count > 0, "{invariant}: {text}");
    }
}

#[test]
fn a_seed_has_the_same_history_each_time_and_another_seed_has_another() {
    let run = |seed| {
        let output = sim(&["--seed", seed, "--steps", "60", "--full"]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let [first, again, other] = ["3", "3", "4"].map(run);
    if let Some((a, b)) = first.lines().zip(again.lines()).find(|(a, b)| a != b) {
        panic!("two runs of one seed differ:\n{a}\n{b}");
    }
    assert_eq!(first, again);
    let digest = |text: &str| after(text, "; digest ").to_owned();
    assert_ne!(digest(&first), digest(&other));
}

/// Plants the bug, and returns the output of the seed that found it.
fn found(bug: Bug) -> String {
    let seeds = SEEDS.to_string();
    let output = sim(&["--seeds", &seeds, "--bug", bug.name()]);
    assert_eq!(output.status.code(), Some(1), "{bug}: {}", text(&output));
    let text = text(&output);
    let failed = text.lines().find(|line| line.contains(" FAILED: "));
    failed.unwrap().to_owned()
}

#[test]
fn a_failed_run_prints_what_failed_and_how_to_repeat_it_and_the_repetition_fails_alike() {
    let failed = found(Bug::AbsenceIsDeletion);
    let seed = after(&failed, "seed ");
    let again = sim(&["--seed", seed, "--bug", Bug::AbsenceIsDeletion.name()]);
    assert_eq!(again.status.code(), Some(1));
    let text = text(&again);
    assert!(text.starts_with(&failed), "{failed}\n{text}");
    let replay =
        format!("replay: cargo xtask sim --seed {seed} --steps 60 --bug absence-is-deletion\n");
    assert!(text.ends_with(&replay), "{text}");
    assert!(text.contains("fault: "), "{text}");
    assert!(text.contains("user: POST /v1/instances "), "{text}");
}

#[test]
fn a_forgotten_epoch_check_is_found() {
    let failed = found(Bug::ForgottenEpochCheck);
    let invariant = "a_release_is_recorded_by_the_node_before_waifud_counts_it";
    assert!(failed.contains(invariant), "{failed}");
}

#[test]
fn absence_that_is_taken_for_deletion_is_found() {
    let failed = found(Bug::AbsenceIsDeletion);
    assert!(failed.contains("absence_destroys_nothing"), "{failed}");
}

#[test]
fn an_address_that_is_freed_before_the_node_confirmed_is_found() {
    let failed = found(Bug::AddressFreedEarly);
    let invariant = "an_address_stays_reserved_until_its_node_confirms";
    assert!(failed.contains(invariant), "{failed}");
}

#[test]
fn an_acknowledged_change_that_is_lost_by_a_late_commit_is_found() {
    let failed = found(Bug::LateCommit);
    assert!(failed.contains("acknowledged_changes_survive"), "{failed}");
}

#[test]
fn a_handover_that_begins_before_the_release_is_durable_is_found() {
    let failed = found(Bug::HandoverBeforeRelease);
    let invariant = "a_release_is_recorded_by_the_node_before_waifud_counts_it";
    assert!(failed.contains(invariant), "{failed}");
}

#[test]
fn disks_that_are_deleted_before_the_instance_was_seen_on_its_new_node_are_found() {
    let failed = found(Bug::OldDisksDeletedEarly);
    assert!(failed.contains("absence_destroys_nothing"), "{failed}");
}

#[test]
fn documents_that_are_served_at_an_address_with_a_new_owner_are_found() {
    // Releases leave the documents behind, too, which another invariant finds.
    let invariant = " FAILED: documents_are_served_to_the_owner_of_the_address_only";
    let finds = |seed: u64| {
        let bug = Bug::DocumentsLeftBehind.name();
        text(&sim(&["--seed", &seed.to_string(), "--bug", bug])).contains(invariant)
    };
    assert!((1..=SEEDS).any(finds));
}
