//! A database of schema 12 with rows in every table that later migrations change: after the migration to the newest schema
//! the typed functions of this crate read them all.

use std::path::Path;

use rusqlite::Connection;
use serde_json::json;
use waifud_api::agent::Release;
use waifud_types::event::Actor;
use waifud_types::node::Resources;
use waifud_types::ownership::{OwnershipRole, Part};
use waifud_types::{ByteSize, Digest, Epoch, Incarnation, InstanceId, NodeId, Revision};

use crate::migrate::{MIGRATIONS, SCHEMA, run};
use crate::{EventFilter, Mode, Store, StoreError};

fn node_id(number: u128) -> NodeId {
    NodeId::from_uuid(uuid::Uuid::from_u128(number))
}

fn instance_id(number: u128) -> InstanceId {
    InstanceId::from_uuid(uuid::Uuid::from_u128(number))
}

const ALDER: u128 = 0xa1;
const BIRCH: u128 = 0xb1;
/// Runs on alder.
const WEB: u128 = 1;
/// Is being destroyed on birch.
const DB: u128 = 2;
/// Waits for a node.
const WAITING: u128 = 3;

/// The codes of failed downloads in schema 12, and those of today.
const CODES: [(&str, &str); 6] = [
    ("bad-url", "invalid-url"),
    ("bad-image", "invalid-image"),
    ("bad-checksums", "invalid-checksums"),
    ("not-served", "source-refused"),
    ("not-reached", "source-unreachable"),
    ("checksum-mismatch", "checksum-mismatch"),
];

fn facts() -> String {
    json!({
        "arch": "x86_64", "cpu_model": "a CPU", "agent_version": "0.1.0",
        "hypervisor": {"kind": "kvm", "reason": "/dev/kvm"},
        "capacity": {"cpus": 4, "memory_bytes": 8_u64 << 30}, "used": {"cpus": 0, "memory_bytes": 0},
        "pools": [{"name": "main", "kind": "qcow2", "size_bytes": 1 << 30, "used_bytes": 0, "promised_bytes": 0,
                   "health": "online"}],
        "bridges": [], "routes": [], "conditions": [], "labels": {},
    })
    .to_string()
}

fn spec() -> String {
    json!({
        "template": "small", "image": Digest::from_bytes([0; 32]), "cpus": 2, "memory_bytes": 1 << 30, "run": true,
        "restart": "always", "priority": 0, "protected": false, "nics": [], "publish": [], "placement": {},
        "disks": [{"name": "root", "size_bytes": 10 << 20, "pool": "main"}],
    })
    .to_string()
}

fn status(state: &str) -> String {
    let status = waifud_types::status::InstanceStatus::pending(None);
    let mut status = serde_json::to_value(status).unwrap();
    status["state"] = json!(state);
    status.to_string()
}

fn insert_nodes(conn: &Connection) {
    let unmanaged = json!([{"kind": "domain", "instance": instance_id(9), "name": "old", "volume": null,
                            "running": true, "addresses": ["10.0.0.9"]}]);
    for (id, name, subnet) in [
        (ALDER, "alder", "10.0.0.0/24"),
        (BIRCH, "birch", "10.0.1.0/24"),
    ] {
        let (count, addresses) = if id == ALDER {
            (1, r#"["10.0.0.9"]"#)
        } else {
            (0, "[]")
        };
        conn.execute(
            "INSERT INTO nodes (id, name, facts, subnet, joined_at, slice_revision, unclaimed_count, unclaimed_addresses)
             VALUES (?1, ?2, ?3, ?4, 0, 1, ?5, ?6)",
            (id.to_be_bytes(), name, facts(), subnet, count, addresses),
        )
        .unwrap();
    }
    conn.execute(
        "INSERT INTO unmanaged (node, things) VALUES (?1, ?2)",
        (ALDER.to_be_bytes(), unmanaged.to_string()),
    )
    .unwrap();
}

fn insert_instances(conn: &Connection) {
    conn.execute_batch(
        "INSERT INTO images (digest, size_bytes, virtual_size_bytes, created_at) VALUES (zeroblob(32), 1, 2, 0)",
    )
    .unwrap();
    for (id, name, node, deleting, epoch) in [
        (WEB, "web", Some(ALDER), false, 3),
        (DB, "db", Some(BIRCH), true, 1),
        (WAITING, "waiting", None, false, 1),
    ] {
        let state = if node.is_some() { "running" } else { "pending" };
        conn.execute(
            "INSERT INTO instances (id, name, generation, epoch, created_at, template, image, arch, datasource, firmware,
                                    node, state, deleting, labels, spec, status, placement, ssh_keys, cloud_id, bundle,
                                    slice_revision, wait_class)
             VALUES (?1, ?2, 7, ?3, 0, 'small', zeroblob(32), 'x86_64', 'openstack', 'bios', ?4, ?5, ?6, '{}', ?7, ?8,
                     '[]', '[]', 'i-1', ?9, 2, '')",
            rusqlite::params![
                id.to_be_bytes(),
                name,
                epoch,
                node.map(u128::to_be_bytes),
                state,
                deleting,
                spec(),
                status(state),
                [u8::try_from(id).unwrap(); 32],
            ],
        )
        .unwrap();
        let Some(node) = node else { continue };
        let row = (id.to_be_bytes(), node.to_be_bytes());
        conn.execute(
            "INSERT INTO reservations (instance, node, cpus, memory_bytes) VALUES (?1, ?2, 2, 1024)",
            row,
        )
        .unwrap();
        conn.execute(
            "INSERT INTO volumes (instance, disk, node, pool, size_bytes)
             VALUES (?1, 'root', ?2, 'main', 10), (?1, 'data', ?2, 'main', 5)",
            row,
        )
        .unwrap();
        conn.execute(
            "INSERT INTO bundles (digest, instance, key, size_bytes, created_at, ciphertext)
             VALUES (?1, ?2, 'key', 1, 0, x'00')",
            ([u8::try_from(id).unwrap(); 32], id.to_be_bytes()),
        )
        .unwrap();
    }
    conn.execute(
        "INSERT INTO tombstones (instance, node, name, epoch, created_at, slice_revision) VALUES (?1, ?2, 'db', 1, 0, 3)",
        (DB.to_be_bytes(), BIRCH.to_be_bytes()),
    )
    .unwrap();
}

fn insert_downloads_and_events(conn: &Connection) {
    let mut reasons: Vec<Option<&str>> = vec![None, Some("no-room"), Some("host")];
    for (old, _) in CODES {
        reasons.push(Some(old));
        let problem = json!({
            "type": format!("/problems/{old}"), "title": "it failed", "status": 422, "detail": null, "code": old,
            "field": "url", "hint": "try another", "request_id": null,
        });
        conn.execute(
            "INSERT INTO downloads (template, source, request, error, validator, created_at)
             VALUES (?1, zeroblob(32), ?2, ?3, NULL, 0)",
            (
                old,
                json!({"name": old, "url": "https://example.org/a"}).to_string(),
                problem.to_string(),
            ),
        )
        .unwrap();
    }
    conn.execute(
        "INSERT INTO downloads (template, source, request, error, validator, created_at)
         VALUES ('running', zeroblob(32), ?1, NULL, 'etag', 0)",
        [json!({"name": "running"}).to_string()],
    )
    .unwrap();
    let actor = Actor {
        kind: "system".to_owned(),
        name: "waifud".to_owned(),
        from: None,
    };
    let actor = serde_json::to_string(&actor).unwrap();
    let event = |kind: &str, reason: Option<&str>| {
        conn.execute(
            "INSERT INTO events (at, kind, object_type, object_id, object_name, actor, reason, message, details)
             VALUES (0, ?1, 'instance', 'i', 'web', ?2, ?3, 'm', '{}')",
            (kind, actor.as_str(), reason),
        )
        .unwrap();
    };
    event("instance.claimed", None);
    event("node.unclaimed", None);
    for reason in reasons {
        event("instance.waiting", reason);
    }
}

/// Creates a database of schema 12.
fn schema_12(path: &Path) {
    let mut conn = Connection::open(path).unwrap();
    conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    run(&mut conn, path, &MIGRATIONS[..12]).unwrap();
    insert_nodes(&conn);
    insert_instances(&conn);
    insert_downloads_and_events(&conn);
}

fn opened() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waifud.db");
    schema_12(&path);
    let store = Store::open(&path, Mode::Inline, Incarnation(7)).unwrap();
    (dir, store)
}

fn owner(node: u128, epoch: u64) -> Part {
    Part {
        node: node_id(node),
        epoch: Epoch(epoch),
        role: OwnershipRole::Owner,
        stop: false,
        off: false,
    }
}

#[tokio::test]
async fn nodes_and_instances_of_schema_12_are_read_with_their_owners_reservations_and_volumes() {
    let (dir, store) = opened();
    let read = store.read(|tx| {
        let alder = tx.node(node_id(ALDER))?.unwrap();
        assert_eq!(
            (alder.unmanaged.count, alder.unmanaged.addresses.len()),
            (1, 1)
        );
        assert_eq!(
            tx.unmanaged_on(node_id(ALDER))?[0].name.as_deref(),
            Some("old")
        );
        assert_eq!(alder.facts.pools[0].kind, waifud_types::PoolKind::Qcow2);
        for (id, node, epoch, deleting) in [(WEB, ALDER, 3, false), (DB, BIRCH, 1, true)] {
            let row = tx.instance(instance_id(id))?.unwrap();
            assert_eq!((row.node, row.deleting), (Some(node_id(node)), deleting));
            assert_eq!(tx.ownership(instance_id(id))?, [owner(node, epoch)]);
            let reserved = Resources {
                cpus: 2,
                memory_bytes: ByteSize(1024),
            };
            assert_eq!(
                tx.reservation(instance_id(id), node_id(node))?,
                Some(reserved)
            );
            assert_eq!(tx.node(node_id(node))?.unwrap().promised, reserved);
        }
        assert!(tx.ownership(instance_id(WAITING))?.is_empty());
        let promises = tx.pool_promises()?;
        assert_eq!(promises.len(), 2);
        assert!(promises.iter().all(|pool| pool.promised == ByteSize(15)));
        let slice = tx.slice(node_id(ALDER), 0)?;
        assert_eq!(slice.len(), 1);
        assert_eq!(slice[0].instance.id, instance_id(WEB));
        assert_eq!(
            tx.slice(node_id(BIRCH), 0)?.len(),
            0,
            "it is being destroyed"
        );
        assert_eq!(tx.tombstones(node_id(BIRCH), 0)?.len(), 1);
        assert!(tx.is_anything_waiting()?);
        Ok::<_, StoreError>(())
    });
    read.await.unwrap();
    for number in 13..=SCHEMA {
        let backup = dir.path().join(format!("waifud.db.before-{number}"));
        assert!(backup.exists(), "{number}");
    }
}

#[tokio::test]
async fn renamed_kinds_codes_and_reasons_in_rows_are_those_of_today() {
    let (_dir, store) = opened();
    let read = store.read(|tx| {
        let downloads = tx.downloads()?;
        assert_eq!(downloads.len(), CODES.len() + 1);
        for (old, new) in CODES {
            let failed = downloads.iter().find(|row| row.template.as_str() == old);
            let problem = failed.unwrap().error.clone().unwrap();
            assert_eq!(problem.code, new);
            assert_eq!(problem.kind, format!("/problems/{new}"));
            assert_eq!((problem.title.as_str(), problem.status), ("it failed", 422));
        }
        let running = tx.download("running")?.unwrap();
        assert_eq!(
            (running.error, running.validator.as_deref()),
            (None, Some("etag"))
        );
        let events = tx.events(0, &EventFilter::default(), 100)?;
        let kinds: Vec<&str> = events
            .iter()
            .take(2)
            .map(|event| event.kind.as_str())
            .collect();
        assert_eq!(kinds, ["instance.adopted", "node.unmanaged"]);
        let reasons: Vec<_> = events
            .iter()
            .skip(2)
            .map(|event| event.reason.as_deref())
            .collect();
        let mut expected = vec![None, Some("insufficient-capacity"), Some("host")];
        expected.extend(CODES.map(|(_, new)| Some(new)));
        assert_eq!(reasons, expected);
        Ok::<_, StoreError>(())
    });
    read.await.unwrap();
}

#[tokio::test]
async fn an_instance_of_schema_12_can_be_released_and_removed_after_the_migration() {
    let (_dir, store) = opened();
    let (web, alder) = (instance_id(WEB), node_id(ALDER));
    let at = |number| Revision {
        incarnation: Incarnation(7),
        number,
    };
    let released = store.write(move |tx| {
        let releasing = Part {
            role: OwnershipRole::Releasing,
            stop: true,
            ..owner(ALDER, 3)
        };
        tx.set_part(web, &releasing, at(100))?;
        assert_eq!(tx.slice(alder, 0)?.len(), 0);
        let releases = tx.releases(alder, 99)?;
        assert_eq!(
            releases[0].release,
            Release {
                instance: web,
                epoch: Epoch(3),
                stop: true
            }
        );
        assert!(tx.releases(alder, 100)?.is_empty(), "it was sent");
        let recorded = Part {
            role: OwnershipRole::Released,
            off: true,
            ..releasing
        };
        tx.set_part(web, &recorded, at(101))?;
        assert_eq!(tx.ownership(web)?, [recorded]);
        assert!(
            tx.releases(alder, 100)?.is_empty(),
            "its confirmation is not sent"
        );
        assert_eq!(tx.releases(alder, 0)?.len(), 1, "a new watch gets it");
        assert_eq!(tx.handovers_on(alder)?, [web]);
        assert_eq!(tx.instance(web)?.unwrap().node, Some(alder));

        // The other node becomes the owner, and the first one gives up its disks.
        tx.set_part(web, &owner(BIRCH, 4), at(102))?;
        tx.set_epoch(web, Epoch(4), at(102))?;
        assert_eq!(tx.slice(node_id(BIRCH), 101)?[0].instance.epoch, Epoch(4));
        assert_eq!(tx.slice(alder, 0)?.len(), 0);
        tx.end_part(web, alder)?;
        assert_eq!(tx.node(alder)?.unwrap().promised, Resources::default());
        assert!(tx.handovers_on(alder)?.is_empty());
        tx.remove_instance(web)?;
        assert!(tx.ownership(web)?.is_empty());
        Ok::<_, StoreError>(())
    });
    released.await.unwrap();
}

#[tokio::test]
async fn the_migration_marks_releases_with_stop_as_off_and_keeps_a_node_for_each_instance() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waifud.db");
    schema_12(&path);
    let mut conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    run(&mut conn, &path, &MIGRATIONS[..16]).unwrap();
    let blob = |id: u128| format!("x'{id:032x}'");
    // alder has released web with a stop, and birch without one; birch has confirmed the deletion of db, which alder also has.
    conn.execute_batch(&format!(
        "UPDATE ownership SET role = 'released', stop = 1 WHERE instance = {web};
         INSERT INTO ownership (instance, node, epoch, role) VALUES ({web}, {birch}, 3, 'released');
         INSERT INTO ownership (instance, node, epoch, role) VALUES ({db}, {alder}, 1, 'receiving');
         UPDATE ownership SET role = 'released' WHERE instance = {db} AND node = {birch};
         DELETE FROM ownership WHERE instance = {db} AND node = {birch};",
        web = blob(WEB),
        db = blob(DB),
        alder = blob(ALDER),
        birch = blob(BIRCH),
    ))
    .unwrap();
    drop(conn);
    let store = Store::open(&path, Mode::Inline, Incarnation(7)).unwrap();
    let read = store.read(|tx| {
        let off: Vec<_> = tx
            .ownership(instance_id(WEB))?
            .iter()
            .map(|part| (part.node, part.off))
            .collect();
        assert_eq!(off, [(node_id(ALDER), true), (node_id(BIRCH), false)]);
        assert_eq!(
            tx.instance(instance_id(DB))?.unwrap().node,
            Some(node_id(ALDER))
        );
        Ok::<_, StoreError>(())
    });
    read.await.unwrap();
}
