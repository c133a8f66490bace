//! The peers in the table: what is saved, what survives a restart, and where a watch resumes.

use proptest::prelude::*;
use waifud_api::agent::{NodeSlice, Peer, SliceKey, SliceObject, WatchFrame, Welcome};
use waifud_types::{FabricKind, Incarnation, MacAddr, NodeId};

use crate::control_link::outcome::Welcomed;
use crate::control_link::table::Table;
use crate::control_link::table_samples::{new_table, open, revision, sync};
use crate::fake::sample_instance;

fn peer(index: u8) -> Peer {
    let id = format!("01890a5d-ac96-774b-bcce-b302099a80{index:02x}");
    Peer {
        id: id.parse().unwrap(),
        name: format!("node{index}").parse().unwrap(),
        subnets: vec![format!("10.144.{index}.0/24").parse().unwrap()],
        extra: Vec::new(),
        public_key: None,
        endpoints: Vec::new(),
        reachable: true,
    }
}

fn put(number: u64, peer: &Peer) -> WatchFrame {
    WatchFrame::Put {
        revision: revision(number),
        object: SliceObject::Peer(peer.clone()),
    }
}

fn delete(number: u64, id: NodeId) -> WatchFrame {
    WatchFrame::Delete {
        revision: revision(number),
        key: SliceKey::Peer(id),
    }
}

fn welcome(incarnation: u32) -> Welcome {
    Welcome {
        node: NodeId::generate(),
        incarnation: Incarnation(incarnation),
        addresses: Vec::new(),
    }
}

fn node(number: u64, confirmed: u32) -> WatchFrame {
    WatchFrame::Put {
        revision: revision(number),
        object: SliceObject::Node(NodeSlice {
            id: NodeId::generate(),
            name: "alder".parse().unwrap(),
            subnet: "10.144.0.0/24".parse().unwrap(),
            gateway: [10, 144, 0, 1].into(),
            gateway_mac: MacAddr::of_guest([0, 0, 1]),
            confirmed: Some(Incarnation(confirmed)),
            clients: None,
            redis: None,
            fabric: FabricKind::None,
        }),
    }
}

#[test]
fn peers_take_effect_once_they_are_saved_and_before_the_revision_moves() {
    let (dir, table) = new_table();
    assert_eq!(table.begin_watch(), None);
    table.apply(put(3, &peer(2))).unwrap();
    assert!(table.has_unsaved_peers() && table.peers().is_empty());
    assert!(!table.take_changed_peers());
    table.apply(sync(5)).unwrap();
    assert_eq!(table.peers(), [peer(2)]);
    assert!(table.take_changed_peers() && !table.take_changed_peers());
    assert_eq!(open(&dir).peers(), [peer(2)]);

    // In a running watch, the revision stays until the change is saved.
    let renamed = Peer {
        name: "other".parse().unwrap(),
        ..peer(2)
    };
    table.apply(put(6, &renamed)).unwrap();
    table.apply(put(7, &peer(3))).unwrap();
    assert_eq!(table.node().revision, Some(revision(5)));
    assert_eq!(table.peers(), [peer(2)]);
    table.save_peers().unwrap();
    assert_eq!(table.node().revision, Some(revision(7)));
    assert_eq!(open(&dir).peers(), [renamed.clone(), peer(3)]);

    // Any other frame saves them as well.
    table.apply(delete(8, peer(3).id)).unwrap();
    let instance = WatchFrame::Put {
        revision: revision(9),
        object: SliceObject::Instance(Box::new(sample_instance("web"))),
    };
    table.apply(instance).unwrap();
    let again = open(&dir);
    assert_eq!(again.peers(), [renamed]);
    assert_eq!(again.begin_watch(), Some(revision(9)));
}

#[test]
fn changes_that_were_not_saved_are_sent_again() {
    let (_dir, table) = new_table();
    table.begin_watch();
    table.apply(sync(5)).unwrap();
    table.apply(put(6, &peer(2))).unwrap();
    // The connection ends.
    assert_eq!(table.begin_watch(), Some(revision(5)));
    assert!(!table.has_unsaved_peers());
    table.apply(sync(6)).unwrap();
    assert!(table.peers().is_empty(), "the watch did not send it");
}

#[test]
fn a_watch_from_the_beginning_removes_the_peers_that_it_omits() {
    let (dir, table) = new_table();
    table.begin_watch();
    for index in [2, 3] {
        table.apply(put(3, &peer(index))).unwrap();
    }
    table.apply(sync(5)).unwrap();
    table.forget_revision().unwrap();
    assert_eq!(table.begin_watch(), None);
    table.apply(put(6, &peer(3))).unwrap();
    table.save_peers().unwrap();
    assert_eq!(table.peers().len(), 2, "it may still be sent");
    table.apply(sync(6)).unwrap();
    assert_eq!(table.peers(), [peer(3)]);
    assert_eq!(open(&dir).peers(), [peer(3)]);
}

#[test]
fn a_restored_database_removes_peers_only_once_it_is_confirmed() {
    let (dir, table) = new_table();
    table.welcome(&welcome(1), None).unwrap();
    table.begin_watch();
    for index in [2, 3] {
        table.apply(put(3, &peer(index))).unwrap();
    }
    table.apply(sync(5)).unwrap();
    let changed = table.welcome(&welcome(2), None).unwrap();
    assert_eq!(changed, Welcomed::OtherIncarnation);
    table.begin_watch();
    table.apply(put(1, &peer(3))).unwrap();
    table.apply(sync(2)).unwrap();
    assert_eq!(table.peers(), [peer(2), peer(3)]);
    assert_eq!(open(&dir).peers(), [peer(2), peer(3)]);
    table.apply(node(3, 2)).unwrap();
    assert_eq!(table.peers(), [peer(3)]);
    assert_eq!(open(&dir).peers(), [peer(3)]);
}

#[test]
fn an_agent_that_knows_new_kinds_watches_from_the_beginning() {
    // As written by a version that knew no peers, and by one that recorded no types of frames.
    for kinds in ["", r#""kinds":["instance","node","peer"],"#] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("node.json"),
            format!(
                r#"{{{kinds}"node":null,"incarnation":null,"unconfirmed":null,"revision":"00000001.7","slice":null}}"#
            ),
        )
        .unwrap();
        let table = open(&dir);
        assert_eq!(table.node().revision, Some(revision(7)));
        assert_eq!(table.begin_watch(), None, "{kinds}");
        table.apply(sync(7)).unwrap();
        assert_eq!(open(&dir).begin_watch(), Some(revision(7)));
    }
}

#[test]
fn a_damaged_file_of_peers_is_sent_again() {
    let (dir, table) = new_table();
    table.begin_watch();
    table.apply(put(3, &peer(2))).unwrap();
    table.apply(sync(5)).unwrap();
    std::fs::write(dir.path().join("peers.json"), "{").unwrap();
    let (table, damaged) = Table::open(dir.path().to_owned()).unwrap();
    assert_eq!(damaged.len(), 1);
    assert_eq!((table.begin_watch(), table.peers()), (None, Vec::new()));
}

#[derive(Clone, Debug)]
enum Act {
    Change(u8, bool),
    Remove(u8),
    /// Delivers this many of the frames that the watch has not sent yet.
    Deliver(usize),
    Save,
    Reconnect,
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0_u8..5, any::<bool>()).prop_map(|(index, reachable)| Act::Change(index, reachable)),
        (0_u8..5).prop_map(Act::Remove),
        (1_usize..4).prop_map(Act::Deliver),
        Just(Act::Save),
        Just(Act::Reconnect),
        Just(Act::Restart),
    ]
}

/// waifud: each object with the revision of its last change, as the store keeps it.
#[derive(Default)]
struct Source {
    number: u64,
    peers: std::collections::BTreeMap<NodeId, (u64, Peer)>,
    deleted: std::collections::BTreeMap<NodeId, u64>,
}

impl Source {
    fn frames(&self, since: u64) -> Vec<WatchFrame> {
        let changed = self.peers.values().filter(|(at, _)| *at > since);
        let mut frames: Vec<_> = changed.map(|(at, peer)| (*at, put(*at, peer))).collect();
        let deleted = self
            .deleted
            .iter()
            .filter(|(_, at)| since > 0 && **at > since);
        frames.extend(deleted.map(|(id, at)| (*at, delete(*at, *id))));
        frames.sort_by_key(|(at, _)| *at);
        frames.into_iter().map(|(_, frame)| frame).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn however_a_watch_is_cut_the_table_ends_with_the_peers_of_waifud(acts in proptest::collection::vec(act(), 1..40)) {
        let (dir, mut table) = new_table();
        let mut source = Source { number: 1, ..Source::default() };
        let connect = |table: &Table, source: &Source| {
            let since = table.begin_watch().map_or(0, |revision| revision.number);
            let mut queue: std::collections::VecDeque<_> = source.frames(since).into();
            queue.push_back(sync(source.number));
            (queue, source.number)
        };
        let (mut queue, mut at) = connect(&table, &source);
        for act in acts.into_iter().chain([Act::Restart, Act::Deliver(99)]) {
            match act {
                Act::Change(index, reachable) => {
                    source.number += 1;
                    let peer = Peer { reachable, ..peer(index) };
                    source.deleted.remove(&peer.id);
                    source.peers.insert(peer.id, (source.number, peer));
                }
                Act::Remove(index) => {
                    source.number += 1;
                    if source.peers.remove(&peer(index).id).is_some() {
                        source.deleted.insert(peer(index).id, source.number);
                    }
                }
                Act::Deliver(count) => {
                    queue.extend(source.frames(at));
                    at = source.number;
                    for frame in queue.drain(..count.min(queue.len())) {
                        table.apply(frame).unwrap();
                    }
                }
                Act::Save => table.save_peers().unwrap(),
                Act::Reconnect => (queue, at) = connect(&table, &source),
                Act::Restart => {
                    let saved = table.peers();
                    table = open(&dir);
                    prop_assert_eq!(table.peers(), saved);
                    (queue, at) = connect(&table, &source);
                }
            }
        }
        table.save_peers().unwrap();
        let expected: Vec<_> = source.peers.values().map(|(_, peer)| peer.clone()).collect();
        prop_assert_eq!(table.peers(), expected);
    }
}
