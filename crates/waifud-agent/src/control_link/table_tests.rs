//! The table, tested with frames in any order and restarts at any point.

use proptest::prelude::*;
use tempfile::TempDir;
use waifud_api::agent::{
    AgentInstance, NodeSlice, Release, SliceKey, SliceObject, Tombstone, WatchFrame, Welcome,
};
use waifud_types::{Epoch, FabricKind, Generation, Incarnation, InstanceId, MacAddr, NodeId};

use crate::control_link::outcome::{Affected, Welcomed};
use crate::control_link::record::{DesiredState, RunMemory};
use crate::control_link::table::Table;
use crate::control_link::table_samples::{new_table, open, revision, sync};
use crate::fake::sample_instance;

fn put(number: u64, instance: &AgentInstance) -> WatchFrame {
    WatchFrame::Put {
        revision: revision(number),
        object: SliceObject::Instance(Box::new(instance.clone())),
    }
}

fn order(number: u64, instance: &AgentInstance) -> WatchFrame {
    WatchFrame::Tombstone {
        revision: revision(number),
        tombstone: Tombstone {
            instance: instance.id,
            name: instance.name.clone(),
            epoch: instance.epoch,
        },
    }
}

fn release(number: u64, instance: &AgentInstance) -> WatchFrame {
    WatchFrame::Release {
        revision: revision(number),
        release: Release {
            instance: instance.id,
            epoch: instance.epoch,
            stop: true,
        },
    }
}

/// A new table with an instance.
fn with_instance() -> (TempDir, Table, AgentInstance) {
    let (dir, table) = new_table();
    let instance = sample_instance("a");
    table.apply(put(1, &instance)).unwrap();
    (dir, table, instance)
}

fn is_kept(table: &Table, id: InstanceId) -> bool {
    matches!(
        table.view(id).map(|v| v.desired),
        Some(DesiredState::Keep(_))
    )
}

fn is_deleted(table: &Table, id: InstanceId) -> bool {
    let view = table.view(id);
    view.is_some_and(|view| matches!(view.desired, DesiredState::Destroy(_)))
}

#[test]
fn a_revision_is_stored_only_after_everything_before_it() {
    let (dir, table) = new_table();
    assert_eq!(table.begin_watch(), None);
    table.apply(put(7, &sample_instance("a"))).unwrap();
    assert_eq!(open(&dir).begin_watch(), None, "the list was not complete");
    assert_eq!(table.apply(sync(9)).unwrap(), Affected::Synced);
    assert_eq!(open(&dir).begin_watch(), Some(revision(9)));
    table.apply(put(10, &sample_instance("b"))).unwrap();
    let again = open(&dir);
    assert_eq!(again.begin_watch(), Some(revision(10)));
    assert_eq!(again.records().len(), 2);
}

#[test]
fn a_complete_list_makes_omitted_instances_unmanaged_and_keeps_deletions() {
    let (_dir, table) = new_table();
    let (a, b, c) = (
        sample_instance("a"),
        sample_instance("b"),
        sample_instance("c"),
    );
    table.begin_watch();
    for instance in [&a, &b, &c] {
        table.apply(put(1, instance)).unwrap();
    }
    table.apply(sync(1)).unwrap();
    table.apply(order(2, &c)).unwrap();
    table.forget_revision().unwrap();
    assert_eq!(table.begin_watch(), None);
    table.apply(put(3, &a)).unwrap();
    table.apply(sync(3)).unwrap();
    assert!(is_kept(&table, a.id));
    assert_eq!(table.view(b.id).unwrap().desired, DesiredState::LeaveAlone);
    assert!(is_deleted(&table, c.id));
}

#[test]
fn an_incomplete_list_leaves_everything_managed() {
    let (dir, table) = new_table();
    let a = sample_instance("a");
    table.begin_watch();
    table.apply(put(1, &a)).unwrap();
    table.apply(sync(1)).unwrap();
    table.forget_revision().unwrap();
    table.begin_watch();
    // The connection fails before the sync; the next watch starts again.
    table.begin_watch();
    assert!(is_kept(&table, a.id));
    assert!(is_kept(&open(&dir), a.id));
}

#[test]
fn older_epochs_are_ignored_and_deleted_instances_stay_deleted() {
    let (_dir, table) = new_table();
    let mut instance = sample_instance("a");
    let old = instance.clone();
    instance.epoch = Epoch(2);
    table.apply(put(1, &instance)).unwrap();
    assert_eq!(table.apply(put(2, &old)).unwrap(), Affected::None);
    assert_eq!(table.apply(order(3, &old)).unwrap(), Affected::None);
    assert!(is_kept(&table, instance.id));
    table.apply(order(3, &instance)).unwrap();
    assert_eq!(table.apply(put(4, &instance)).unwrap(), Affected::None);
    assert!(is_deleted(&table, instance.id));
}

#[test]
fn another_incarnation_holds_deletions_until_it_is_confirmed() {
    let (dir, table) = new_table();
    let instance = sample_instance("a");
    let welcome = |incarnation| Welcome {
        node: NodeId::from_uuid(*instance.id.as_uuid()),
        incarnation: Incarnation(incarnation),
        addresses: Vec::new(),
    };
    let held = |table: &Table| {
        let DesiredState::Destroy(order) = table.view(instance.id).unwrap().desired else {
            panic!("no order");
        };
        order.held
    };
    assert_eq!(
        table.welcome(&welcome(1), None).unwrap(),
        Welcomed::Unchanged
    );
    table.apply(put(1, &instance)).unwrap();
    table.apply(order(2, &instance)).unwrap();
    assert!(!held(&table));
    let changed = table.welcome(&welcome(2), None).unwrap();
    assert_eq!(changed, Welcomed::OtherIncarnation);
    let again = table.welcome(&welcome(2), None).unwrap();
    assert_eq!(again, Welcomed::Unchanged, "reported once");
    assert_eq!(table.begin_watch(), None, "everything is asked for again");
    let table = open(&dir);
    assert!(held(&table), "also after a restart");
    assert!(!table.confirm(Incarnation(1)).unwrap());
    assert!(table.confirm(Incarnation(2)).unwrap());
    assert!(!held(&table));
}

#[test]
fn a_restored_database_brings_back_a_deleted_instance_although_the_node_was_confirmed_before_its_watch()
 {
    let (dir, table) = new_table();
    let (kept, deleted) = (sample_instance("kept"), sample_instance("deleted"));
    let node = NodeId::from_uuid(*kept.id.as_uuid());
    let welcome = |incarnation| Welcome {
        node,
        incarnation: Incarnation(incarnation),
        addresses: Vec::new(),
    };
    table.welcome(&welcome(1), None).unwrap();
    table.begin_watch();
    for (number, instance) in [(1, &kept), (2, &deleted)] {
        table.apply(put(number, instance)).unwrap();
    }
    table.apply(sync(2)).unwrap();
    table.apply(order(3, &deleted)).unwrap();
    table.apply(order(4, &kept)).unwrap();
    table.mark_destroyed(deleted.id).unwrap();
    table.welcome(&welcome(2), None).unwrap();
    table.begin_watch();
    let confirmed = WatchFrame::Put {
        revision: revision(1),
        object: SliceObject::Node(NodeSlice {
            id: node,
            name: "alder".parse().unwrap(),
            subnet: "10.144.1.0/24".parse().unwrap(),
            gateway: [10, 144, 1, 1].into(),
            gateway_mac: MacAddr::of_guest([0, 0, 1]),
            confirmed: Some(Incarnation(2)),
            redis: None,
            fabric: FabricKind::None,
            clients: None,
        }),
    };
    table.apply(confirmed.clone()).unwrap();
    // Interrupted, and begun again.
    drop(table);
    let table = open(&dir);
    table.begin_watch();
    table.apply(confirmed).unwrap();
    assert!(table.node().unconfirmed.is_some());
    for (number, instance) in [(2, &kept), (3, &deleted)] {
        table.apply(put(number, instance)).unwrap();
    }
    table.apply(sync(3)).unwrap();
    assert!(is_kept(&table, kept.id) && is_kept(&table, deleted.id));
    assert_eq!(table.node().unconfirmed, None);
    // A deletion that is requested now is executed.
    table.apply(order(4, &deleted)).unwrap();
    assert!(is_deleted(&table, deleted.id));
}

#[test]
fn what_a_machine_has_is_unmanaged_after_it_has_joined_as_another_node() {
    let (dir, table) = new_table();
    let (web, db) = (sample_instance("web"), sample_instance("db"));
    let welcome = |node: &AgentInstance| Welcome {
        node: NodeId::from_uuid(*node.id.as_uuid()),
        incarnation: Incarnation(1),
        addresses: Vec::new(),
    };
    table.welcome(&welcome(&web), None).unwrap();
    table.begin_watch();
    table.apply(put(1, &web)).unwrap();
    table.apply(order(2, &db)).unwrap();
    table.apply(sync(2)).unwrap();
    assert!(table.is_slice_known());
    let changed = table.welcome(&welcome(&db), None).unwrap();
    assert_eq!(changed, Welcomed::OtherNode);
    assert!(!table.is_slice_known());
    for table in [open(&dir), table] {
        assert_eq!(table.begin_watch(), None);
        table.apply(sync(3)).unwrap();
        assert_eq!(
            table.view(web.id).unwrap().desired,
            DesiredState::LeaveAlone
        );
        // Nothing is held: the database was not restored.
        let DesiredState::Destroy(order) = table.view(db.id).unwrap().desired else {
            panic!("no order");
        };
        assert!(!order.held);
    }
}

#[test]
fn a_request_to_start_overrides_a_stopped_instance() {
    let (_dir, table, mut instance) = with_instance();
    let stopped = |table: &Table| {
        table
            .remember(instance.id, |memory| memory.run = RunMemory::Stopped)
            .unwrap();
    };
    stopped(&table);
    table.apply(put(1, &instance)).unwrap();
    let run = |table: &Table| table.view(sample_id(table)).unwrap().record.memory.run;
    assert_eq!(
        run(&table),
        RunMemory::Stopped,
        "the same again is no order"
    );
    instance.generation = Generation(2);
    table.apply(put(2, &instance)).unwrap();
    assert_eq!(run(&table), RunMemory::Free);
}

fn sample_id(table: &Table) -> InstanceId {
    table.records()[0].id
}

/// What an agent of an earlier version, which knew no releases, reads of a record.
#[derive(serde::Deserialize)]
struct EarlierRecord {
    instance: Option<AgentInstance>,
    managed: bool,
    tombstone: Option<Tombstone>,
}

#[derive(Clone, Debug)]
enum Act {
    Put(usize, u64),
    Leave(usize),
    Order(usize, u64),
    Release(usize, u64),
    Completed(usize),
    Sync,
    Watch(bool),
    Destroyed(usize),
    Remember(usize),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0_usize..3, 1_u64..4).prop_map(|(i, e)| Act::Put(i, e)),
        (0_usize..3).prop_map(Act::Leave),
        (0_usize..3, 1_u64..4).prop_map(|(i, e)| Act::Order(i, e)),
        (0_usize..3, 1_u64..4).prop_map(|(i, e)| Act::Release(i, e)),
        (0_usize..3).prop_map(Act::Completed),
        Just(Act::Sync),
        any::<bool>().prop_map(Act::Watch),
        (0_usize..3).prop_map(Act::Destroyed),
        (0_usize..3).prop_map(Act::Remember),
        Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_is_in_memory_is_on_disk_after_every_frame(acts in proptest::collection::vec(act(), 1..25)) {
        let (dir, mut table) = new_table();
        let samples: Vec<_> = ["a", "b", "c"].into_iter().map(sample_instance).collect();
        // The newest epoch of each instance that the node has released.
        let mut released = [0; 3];
        for (number, act) in (1..).zip(acts) {
            let known = table.records().len();
            let at = |index: usize, epoch: u64| {
                let mut instance = samples[index].clone();
                instance.epoch = Epoch(epoch);
                instance.generation = Generation(number);
                instance
            };
            match act {
                Act::Put(i, epoch) => drop(table.apply(put(number, &at(i, epoch))).unwrap()),
                Act::Order(i, epoch) => drop(table.apply(order(number, &at(i, epoch))).unwrap()),
                Act::Release(i, epoch) => {
                    if table.apply(release(number, &at(i, epoch))).unwrap() != Affected::None {
                        released[i] = epoch;
                    }
                }
                Act::Completed(i) => {
                    if let Some(version) = table.version(samples[i].id) {
                        table.complete_release(samples[i].id, version).unwrap();
                    }
                }
                Act::Leave(i) => {
                    let frame = WatchFrame::Delete { revision: revision(number), key: SliceKey::Instance(samples[i].id) };
                    table.apply(frame).unwrap();
                }
                Act::Sync => drop(table.apply(sync(number)).unwrap()),
                Act::Watch(from_start) => {
                    if from_start {
                        table.forget_revision().unwrap();
                    }
                    table.begin_watch();
                }
                Act::Destroyed(i) => table.mark_destroyed(samples[i].id).unwrap(),
                Act::Remember(i) => {
                    table.remember(samples[i].id, |memory| memory.defined = true).unwrap();
                }
                Act::Restart => table = open(&dir),
            }
            prop_assert!(table.records().len() >= known, "no frame makes the table forget");
            let other = open(&dir);
            prop_assert_eq!(other.records(), table.records());
            prop_assert_eq!(other.node(), table.node());
            for record in table.records() {
                if let DesiredState::Destroy(order) = record.desired_state(false) {
                    prop_assert_eq!(order.tombstone.instance, record.id);
                    prop_assert!(record.tombstone.is_some());
                }
                let at = samples.iter().position(|sample| sample.id == record.id).unwrap();
                if let DesiredState::Keep(kept) = record.desired_state(false) {
                    prop_assert!(kept.epoch > Epoch(released[at]), "only a newer epoch is kept after a release");
                    prop_assert_eq!(Some(kept.epoch), record.copy().epoch);
                }
                let earlier: EarlierRecord =
                    serde_json::from_value(serde_json::to_value(&record).unwrap()).unwrap();
                if earlier.managed && earlier.tombstone.is_none() {
                    let epoch = earlier.instance.unwrap().epoch;
                    prop_assert!(epoch > Epoch(released[at]), "an agent without releases would start it");
                }
            }
        }
    }
}

#[test]
fn a_release_is_kept_until_a_newer_epoch_and_an_older_one_is_ignored() {
    let (dir, table) = new_table();
    let mut instance = sample_instance("a");
    let id = instance.id;
    let old = instance.clone();
    instance.epoch = Epoch(2);
    table.apply(put(1, &instance)).unwrap();
    assert_eq!(table.apply(release(2, &old)).unwrap(), Affected::None);
    assert!(is_kept(&table, id));

    let order = release(3, &instance);
    let released = |table: &Table| match table.view(id).unwrap().desired {
        DesiredState::Release(handover) => handover.record.completed,
        other => panic!("it is not released: {other:?}"),
    };
    table.apply(order.clone()).unwrap();
    assert!(!released(&open(&dir)), "also after a restart");
    // The version of before the release is outdated.
    table.complete_release(id, 0).unwrap();
    assert!(!released(&table));
    let version = table.version(id).unwrap();
    table.complete_release(id, version).unwrap();
    assert!(released(&table) && released(&open(&dir)));
    table.apply(order).unwrap();
    assert!(released(&table), "a repeated order changes nothing");
    assert_eq!(table.apply(put(4, &instance)).unwrap(), Affected::None);
    assert!(released(&table));

    // Omitted by a complete list, it is left alone, and still not started.
    table.forget_revision().unwrap();
    table.begin_watch();
    table.apply(sync(5)).unwrap();
    assert_eq!(table.view(id).unwrap().desired, DesiredState::LeaveAlone);
    // A restored database contains it as the node's. The release is reported to waifud again.
    let affected = table.apply(put(6, &instance)).unwrap();
    assert_eq!(affected, Affected::Instances(vec![id]));
    assert!(released(&table) && released(&open(&dir)));

    instance.epoch = Epoch(3);
    table.apply(put(7, &instance)).unwrap();
    assert!(is_kept(&table, id) && is_kept(&open(&dir), id));
}

#[test]
fn an_instance_that_returns_during_its_removal_is_kept() {
    let (dir, table, mut instance) = with_instance();
    let id = instance.id;
    let leave = |number| WatchFrame::Delete {
        revision: revision(number),
        key: SliceKey::Instance(id),
    };
    table.apply(leave(2)).unwrap();
    let version = table.version(id).unwrap();
    table.apply(put(3, &instance)).unwrap();
    table.forget(id, version).unwrap();
    assert!(is_kept(&table, id) && is_kept(&open(&dir), id));

    // waifud confirms the deletion after it has sent a later copy.
    table.apply(order(4, &instance)).unwrap();
    table.mark_destroyed(id).unwrap();
    instance.epoch = Epoch(2);
    table.apply(put(5, &instance)).unwrap();
    table.forget_destroyed(id).unwrap();
    assert!(is_kept(&table, id) && is_kept(&open(&dir), id));

    table.apply(order(6, &instance)).unwrap();
    table.mark_destroyed(id).unwrap();
    table.forget_destroyed(id).unwrap();
    assert!(table.view(id).is_none() && open(&dir).view(id).is_none());

    table.apply(put(7, &instance)).unwrap();
    table.apply(leave(8)).unwrap();
    table.forget(id, table.version(id).unwrap()).unwrap();
    assert!(table.view(id).is_none() && open(&dir).view(id).is_none());
}

#[test]
fn an_instance_that_returns_after_its_destruction_gets_new_disks() {
    let (dir, table, mut instance) = with_instance();
    let id = instance.id;
    let root = "root".parse().unwrap();
    table
        .remember(id, |memory| {
            memory.disks.created.insert(root);
        })
        .unwrap();
    table.apply(order(2, &instance)).unwrap();
    table.mark_destroyed(id).unwrap();
    // waifud has confirmed the deletion, and the agent does not know that yet.
    instance.epoch = Epoch(2);
    table.apply(put(3, &instance)).unwrap();
    assert!(is_kept(&table, id));
    let memory = open(&dir).view(id).unwrap().record.memory;
    assert!(memory.disks.created.is_empty(), "{memory:?}");
}

#[test]
fn a_release_ends_an_older_deletion() {
    let (dir, table, mut instance) = with_instance();
    let id = instance.id;
    for done in [false, true] {
        table.apply(order(2, &instance)).unwrap();
        if done {
            table.mark_destroyed(id).unwrap();
        }
        assert!(is_deleted(&table, id));
        instance.epoch = instance.epoch.next();
        table.apply(release(3, &instance)).unwrap();
        for table in [&table, &open(&dir)] {
            let view = table.view(id).unwrap();
            let desired = &view.desired;
            assert!(matches!(desired, DesiredState::Release(_)), "{desired:?}");
            assert_eq!(
                (view.record.tombstone, view.record.destroyed),
                (None, false)
            );
        }
    }
    // A deletion that follows the release still takes precedence.
    table.apply(order(4, &instance)).unwrap();
    assert!(is_deleted(&table, id));
}

#[test]
fn a_restored_database_with_an_instance_that_was_released_and_deleted_keeps_its_disks() {
    let (dir, table, instance) = with_instance();
    let id = instance.id;
    let welcome = |incarnation| Welcome {
        node: NodeId::from_uuid(*id.as_uuid()),
        incarnation: Incarnation(incarnation),
        addresses: Vec::new(),
    };
    table.welcome(&welcome(1), None).unwrap();
    table.apply(release(2, &instance)).unwrap();
    let version = table.version(id).unwrap();
    table.complete_release(id, version).unwrap();
    table.apply(order(3, &instance)).unwrap();

    // The backup is older than the release and the deletion.
    table.welcome(&welcome(2), None).unwrap();
    let affected = table.apply(put(1, &instance)).unwrap();
    assert_eq!(affected, Affected::Instances(vec![id]));
    table.confirm(Incarnation(2)).unwrap();
    for table in [&table, &open(&dir)] {
        let DesiredState::Release(handover) = table.view(id).unwrap().desired else {
            panic!("the release is not reported");
        };
        assert!(handover.record.completed);
    }
}
