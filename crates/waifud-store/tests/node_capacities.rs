//! The capacities in the writer's memory equal those in the rows after any jobs, and are read again only after a change
//! of those rows.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

mod common;

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use waifud_store::{
    ImageRow, ImageTraits, NewInstance, NewNode, NodeCapacity, PlacementRow, Store, StoreError,
    StoredVerdicts, WriteTx,
};
use waifud_types::node::{NodeFacts, Resources};
use waifud_types::spec::InstanceSpec;
use waifud_types::status::InstanceStatus;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Digest, InstanceId, NodeId, Timestamp};

const IMAGE: Digest = Digest::from_bytes([7; 32]);

fn node_id(number: u8) -> NodeId {
    NodeId::from_uuid(uuid::Uuid::from_u128(u128::from(number) + 1))
}

fn instance_id(number: usize) -> InstanceId {
    InstanceId::from_uuid(uuid::Uuid::from_u128(number as u128 + 1))
}

fn facts(gib: u64) -> NodeFacts {
    serde_json::from_value(json!({
        "arch": "x86_64", "cpu_model": "a CPU", "agent_version": "0.1.0",
        "hypervisor": {"kind": "kvm", "reason": "simulated"},
        "capacity": {"cpus": 64, "memory_bytes": gib << 30}, "used": {"cpus": 0, "memory_bytes": 0},
        "pools": [], "bridges": [], "routes": [], "conditions": [], "labels": {},
    }))
    .unwrap()
}

fn spec(gib: u64, pool: &str) -> InstanceSpec {
    serde_json::from_value(json!({
        "template": "small", "image": IMAGE, "cpus": 1, "memory_bytes": gib << 30, "run": true, "restart": "always",
        "priority": 0, "protected": false, "nics": [], "publish": [], "placement": {},
        "disks": [{"name": "root", "size_bytes": gib << 31, "pool": pool}],
    }))
    .unwrap()
}

/// One job.
#[derive(Clone, Debug)]
enum Step {
    /// The facts of a node change.
    Facts(u8, u64),
    /// A node becomes unreachable (`true`) or reachable.
    Silent(u8, bool),
    /// Reads the capacities, and places on a node.
    Place {
        node: u8,
        gib: u64,
        pool: bool,
    },
    /// Places without reading the capacities.
    PlaceUnseen {
        node: u8,
        gib: u64,
    },
    /// Changes the reservation of the existing instance with this index.
    Resize {
        which: usize,
        gib: u64,
    },
    /// Grows the disk of the existing instance with this index.
    Grow {
        which: usize,
        gib: u64,
    },
    Remove {
        which: usize,
    },
    /// A change that does not affect capacities.
    Unrelated,
}

fn step() -> impl Strategy<Value = (Step, bool)> {
    let step = prop_oneof![
        (0_u8..3, 1_u64..64).prop_map(|(node, gib)| Step::Facts(node, gib)),
        (0_u8..3, any::<bool>()).prop_map(|(node, silent)| Step::Silent(node, silent)),
        (0_u8..3, 1_u64..9, any::<bool>()).prop_map(|(node, gib, pool)| Step::Place {
            node,
            gib,
            pool
        }),
        (0_u8..3, 1_u64..9).prop_map(|(node, gib)| Step::PlaceUnseen { node, gib }),
        (0_usize..20, 1_u64..9).prop_map(|(which, gib)| Step::Resize { which, gib }),
        (0_usize..20, 1_u64..9).prop_map(|(which, gib)| Step::Grow { which, gib }),
        (0_usize..20).prop_map(|which| Step::Remove { which }),
        Just(Step::Unrelated),
    ];
    (step, prop::bool::weighted(0.2))
}

/// The existing instances, by number, with their node.
type Placed = Vec<(usize, u8)>;

fn place(
    tx: &mut WriteTx<'_>,
    number: usize,
    node: u8,
    spec: &InstanceSpec,
) -> Result<(), StoreError> {
    let id = instance_id(number);
    let revision = tx.emit(&common::event("placed"))?;
    let status = InstanceStatus::pending(None);
    let new = NewInstance {
        id,
        name: format!("guest{number}").parse().unwrap(),
        labels: std::collections::BTreeMap::new(),
        spec: spec.clone(),
        status: status.clone(),
        traits: ImageTraits {
            arch: "x86_64".to_owned(),
            datasource: Datasource::Openstack,
            firmware: Firmware::Bios,
        },
        ssh_keys: Vec::new(),
        cloud_id: String::new(),
        user_data: None,
        at: Timestamp::UNIX_EPOCH,
    };
    tx.insert_instance(&new, revision)?;
    let choice = PlacementRow {
        instance: id,
        node: node_id(node),
        spec,
        status: &status,
        verdicts: &StoredVerdicts::new(&[]).unwrap(),
    };
    tx.place(&choice, revision)
}

fn apply_step(
    tx: &mut WriteTx<'_>,
    step: &Step,
    number: usize,
    there: &Placed,
) -> Result<Placed, StoreError> {
    let mut there = there.clone();
    match *step {
        Step::Facts(node, gib) => tx.set_node_facts(node_id(node), &facts(gib))?,
        Step::Silent(node, silent) => {
            let revision = tx.emit(&common::event("contact"))?;
            tx.set_node_reachable(node_id(node), !silent, Timestamp::UNIX_EPOCH, revision)?;
        }
        Step::Place { node, gib, pool } => {
            tx.capacities_for_placement()?;
            place(
                tx,
                number,
                node,
                &spec(gib, if pool { "main" } else { "fast" }),
            )?;
            there.push((number, node));
        }
        Step::PlaceUnseen { node, gib } => {
            place(tx, number, node, &spec(gib, "main"))?;
            there.push((number, node));
        }
        Step::Resize { which, gib } => {
            if let Some((number, node)) = there.get(which) {
                let promised = Resources {
                    cpus: 2,
                    memory_bytes: ByteSize::gib(gib),
                };
                tx.set_reservation(instance_id(*number), node_id(*node), promised)?;
            }
        }
        Step::Grow { which, gib } => {
            if let Some((number, _)) = there.get(which) {
                tx.set_volume_sizes(instance_id(*number), &spec(gib, "main").disks)?;
            }
        }
        Step::Remove { which } => {
            if which < there.len() {
                let (number, _) = there.remove(which);
                tx.remove_instance(instance_id(number))?;
            }
        }
        Step::Unrelated => {
            tx.emit(&common::event("unmanaged"))?;
        }
    }
    Ok(there)
}

async fn store(dir: &std::path::Path) -> Store {
    let store = common::open(dir);
    store
        .write(|tx| {
            tx.insert_image(&ImageRow {
                digest: IMAGE,
                size: ByteSize(1),
                virtual_size: ByteSize(1),
                created_at: Timestamp::UNIX_EPOCH,
            })?;
            for number in 0..3 {
                let revision = tx.emit(&common::event("joined"))?;
                let new = NewNode {
                    id: node_id(number),
                    name: format!("node{number}").parse().unwrap(),
                    facts: facts(64),
                    subnet: format!("10.144.{number}.0/24").parse().unwrap(),
                    at: Timestamp::UNIX_EPOCH,
                };
                tx.insert_node(&new, revision)?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    store
}

/// The capacities in the writer's memory, and those in the rows.
async fn both(store: &Store) -> (Arc<Vec<NodeCapacity>>, Vec<NodeCapacity>) {
    store
        .write(|tx| Ok::<_, StoreError>((tx.capacities_for_placement()?, tx.node_capacities()?)))
        .await
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn capacities_in_memory_equal_those_of_the_rows(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = store(dir.path()).await;
            let mut there = Placed::new();
            for (number, (step, fails)) in steps.into_iter().enumerate() {
                let (now, doing) = (there.clone(), step.clone());
                let done = store.write(move |tx| {
                    let after = apply_step(tx, &doing, number, &now)?;
                    if fails { Err(StoreError::Closed) } else { Ok(after) }
                }).await;
                match done {
                    Ok(after) => there = after,
                    Err(error) => assert!(fails, "{error}"),
                }
                let (kept, read) = both(&store).await;
                assert_eq!(*kept, read, "after {step:?}, fails: {fails}");
            }
        });
    }
}

#[tokio::test]
async fn other_changes_do_not_cause_capacities_to_be_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store
        .write(|tx| place(tx, 0, 0, &spec(1, "main")))
        .await
        .unwrap();
    let (first, _) = both(&store).await;
    store
        .write(common::note("unmanaged".to_owned(), false))
        .await
        .unwrap();
    store
        .write(common::note("failed".to_owned(), true))
        .await
        .unwrap_err();
    let status = InstanceStatus::pending(Some("as its node reports".to_owned()));
    store
        .write(move |tx| tx.set_status(instance_id(0), &status))
        .await
        .unwrap();
    let (again, _) = both(&store).await;
    assert!(Arc::ptr_eq(&first, &again));
    // A failed placement leaves the previous copy, or none.
    let failed = store.write(|tx| {
        tx.capacities_for_placement()?;
        place(tx, 1, 0, &spec(1, "main"))?;
        Err::<(), _>(StoreError::Closed)
    });
    failed.await.unwrap_err();
    let (after, read) = both(&store).await;
    assert_eq!(*after, read);
    assert_eq!(*after, *first);
}

#[tokio::test]
async fn unmanaged_objects_are_read_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let store = common::open(dir.path());
    let things: Vec<waifud_api::agent::Unmanaged> = serde_json::from_value(json!([
        {"kind": "domain", "instance": instance_id(1), "name": "web", "volume": null, "running": true,
         "addresses": ["10.144.1.9", "10.144.1.2"]},
        {"kind": "volume", "instance": instance_id(2), "name": null, "volume": null, "running": false,
         "addresses": ["10.144.1.2"]},
    ]))
    .unwrap();
    let unmanaged = things.clone();
    let row = store
        .write(move |tx| {
            let revision = tx.emit(&common::event("alder"))?;
            let new = NewNode {
                id: node_id(1),
                name: "alder".parse().unwrap(),
                facts: facts(8),
                subnet: "10.144.1.0/24".parse().unwrap(),
                at: Timestamp::UNIX_EPOCH,
            };
            tx.insert_node(&new, revision)?;
            tx.set_node_unmanaged(node_id(1), &unmanaged)?;
            assert_eq!(tx.unmanaged_on(node_id(1))?, unmanaged);
            tx.node(node_id(1))
        })
        .await
        .map_err(|e: StoreError| e)
        .unwrap()
        .unwrap();
    assert_eq!(row.unmanaged.count, 2);
    let addresses: [std::net::Ipv4Addr; 2] = [[10, 144, 1, 2].into(), [10, 144, 1, 9].into()];
    assert_eq!(row.unmanaged.addresses, addresses);
    let left = store
        .write(|tx| {
            tx.set_node_unmanaged(node_id(1), &[])?;
            Ok::<_, StoreError>((tx.unmanaged_on(node_id(1))?, tx.node(node_id(1))?))
        })
        .await
        .unwrap();
    assert!(left.0.is_empty());
    assert_eq!(left.1.unwrap().unmanaged.count, 0);
}
