//! Ownership in the database: the migration to it, its triggers and sums, and the indexes of its queries.
use rusqlite::Connection;

use crate::migrate::{MIGRATIONS, migrate, run};
use crate::ownership::{HANDOVERS, RELEASES};

const INSTANCE: &str = "x'00000000000000000000000000000001'";
const WAITING: &str = "x'00000000000000000000000000000002'";
const OLD: &str = "x'000000000000000000000000000000aa'";
const NEW: &str = "x'000000000000000000000000000000bb'";

/// A database of schema 13 with two nodes, an instance on the first and one that waits; then the newest schema.
fn migrated() -> (tempfile::TempDir, Connection) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waifud.db");
    let mut conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    run(&mut conn, &path, &MIGRATIONS[..13]).unwrap();
    for (id, name, subnet) in [(OLD, "old", "10.0.0.0/24"), (NEW, "new", "10.0.1.0/24")] {
        conn.execute_batch(&format!(
            "INSERT INTO nodes (id, name, facts, subnet, joined_at, slice_revision)
             VALUES ({id}, '{name}', '{{}}', '{subnet}', 0, 0)"
        ))
        .unwrap();
    }
    conn.execute_batch(
        "INSERT INTO images (digest, size_bytes, virtual_size_bytes, created_at) VALUES (zeroblob(32), 1, 1, 0)",
    )
    .unwrap();
    for (id, name, node) in [(INSTANCE, "web", OLD), (WAITING, "db", "NULL")] {
        conn.execute_batch(&format!(
            "INSERT INTO instances (id, name, generation, epoch, created_at, template, image, arch, datasource,
                                    firmware, node, state, labels, spec, status, placement, ssh_keys, cloud_id,
                                    slice_revision)
             VALUES ({id}, '{name}', 1, 4, 0, 't', zeroblob(32), 'x86_64', 'openstack', 'bios', {node}, 'running',
                     '{{}}', '{{}}', '{{}}', '[]', '[]', 'c', 0)"
        ))
        .unwrap();
    }
    conn.execute_batch(&format!(
        "INSERT INTO reservations (instance, node, cpus, memory_bytes) VALUES ({INSTANCE}, {OLD}, 2, 1024);
         INSERT INTO volumes (instance, disk, node, pool, size_bytes) VALUES ({INSTANCE}, 'root', {OLD}, 'main', 10)"
    ))
    .unwrap();
    migrate(&mut conn, &path).unwrap();
    (dir, conn)
}

fn one(conn: &Connection, sql: &str) -> i64 {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn promised(conn: &Connection, node: &str) -> (i64, i64) {
    conn.query_row(
        &format!("SELECT promised_cpus, promised_memory_bytes FROM nodes WHERE id = {node}"),
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
    .unwrap()
}

fn is_on(conn: &Connection, node: &str) -> bool {
    one(
        conn,
        &format!("SELECT node IS {node} FROM instances WHERE id = {INSTANCE}"),
    ) == 1
}

#[test]
fn the_migration_makes_nodes_owners_and_keeps_reservations_volumes_and_sums() {
    let (_dir, conn) = migrated();
    let owners = format!(
        "SELECT count(*) FROM ownership WHERE instance = {INSTANCE} AND node = {OLD} AND epoch = 4 AND role = 'owner'"
    );
    assert_eq!(one(&conn, &owners), 1);
    assert_eq!(one(&conn, "SELECT count(*) FROM ownership"), 1);
    assert_eq!(one(&conn, "SELECT sum(cpus) FROM reservations"), 2);
    assert_eq!(one(&conn, "SELECT sum(size_bytes) FROM volumes"), 10);
    assert_eq!(promised(&conn, OLD), (2, 1024));
    assert!(is_on(&conn, OLD));
}

#[test]
fn two_nodes_hold_a_part_of_an_instance_and_each_sum_follows_its_own_part() {
    let (_dir, conn) = migrated();
    conn.execute_batch(&format!(
        "INSERT INTO ownership (instance, node, epoch, role) VALUES ({INSTANCE}, {NEW}, 5, 'receiving');
         INSERT INTO reservations VALUES ({INSTANCE}, {NEW}, 3, 2048);
         INSERT INTO volumes VALUES ({INSTANCE}, {NEW}, 'root', 'main', 10)"
    ))
    .unwrap();
    assert_eq!(promised(&conn, OLD), (2, 1024));
    assert_eq!(promised(&conn, NEW), (3, 2048));
    // The same disk on the same node stays unique.
    let again = format!("INSERT INTO volumes VALUES ({INSTANCE}, {NEW}, 'root', 'other', 1)");
    assert!(conn.execute_batch(&again).is_err());
    conn.execute_batch(&format!(
        "DELETE FROM reservations WHERE instance = {INSTANCE} AND node = {OLD}"
    ))
    .unwrap();
    assert_eq!(promised(&conn, OLD), (0, 0));
    assert_eq!(promised(&conn, NEW), (3, 2048));
}

#[test]
fn an_instance_has_one_owner_and_its_node_follows_the_handover() {
    let (_dir, conn) = migrated();
    let second = format!(
        "INSERT INTO ownership (instance, node, epoch, role) VALUES ({INSTANCE}, {NEW}, 5, 'owner')"
    );
    assert!(conn.execute_batch(&second).is_err(), "a second owner");
    conn.execute_batch(&format!(
        "INSERT INTO ownership (instance, node, epoch, role) VALUES ({INSTANCE}, {NEW}, 5, 'receiving')"
    ))
    .unwrap();
    let promoted = format!("UPDATE ownership SET role = 'owner' WHERE node = {NEW}");
    assert!(conn.execute_batch(&promoted).is_err(), "a second owner");
    assert!(is_on(&conn, OLD));
    conn.execute_batch(&format!(
        "
         UPDATE ownership SET role = 'releasing' WHERE instance = {INSTANCE} AND node = {OLD}"
    ))
    .unwrap();
    assert!(is_on(&conn, OLD), "it is still released");
    conn.execute_batch(&format!(
        "UPDATE ownership SET role = 'owner' WHERE instance = {INSTANCE} AND node = {NEW};
         DELETE FROM ownership WHERE instance = {INSTANCE} AND node = {OLD}"
    ))
    .unwrap();
    assert!(is_on(&conn, NEW));
    conn.execute_batch(&format!(
        "DELETE FROM ownership WHERE instance = {INSTANCE}"
    ))
    .unwrap();
    assert!(is_on(&conn, "NULL"));
}

fn plan(conn: &Connection, sql: &str, parameters: usize) -> String {
    let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let zeros = vec![0; parameters];
    let lines = statement.query_map(rusqlite::params_from_iter(zeros), |row| {
        row.get::<_, String>("detail")
    });
    lines
        .unwrap()
        .map(Result::unwrap)
        .collect::<Vec<_>>()
        .join("; ")
}

#[test]
fn releases_and_handovers_of_a_node_are_found_by_its_index() {
    let (_dir, conn) = migrated();
    let releases = plan(&conn, RELEASES, 2);
    assert!(
        releases.contains("SEARCH o USING INDEX ownership_by_node (node=? AND slice_revision>?)"),
        "{releases}"
    );
    assert!(
        !releases.contains("SCAN") && !releases.contains("TEMP B-TREE"),
        "{releases}"
    );
    let handovers = plan(&conn, HANDOVERS, 1);
    assert!(
        handovers.contains("ownership_by_node (node=?)"),
        "{handovers}"
    );
}

#[test]
fn reads_of_a_nodes_slice_volumes_and_reservations_use_indexes() {
    let (_dir, conn) = migrated();
    for (sql, parameters) in [
        (crate::slice::SLICE, 3),
        (crate::placing::POOL_PROMISES, 0),
        (crate::placing::RESERVATION, 2),
    ] {
        let plan = plan(&conn, sql, parameters);
        let unindexed = plan.split("; ").filter(|line| {
            line.starts_with("SCAN") && !line.contains("USING COVERING INDEX")
                || line.contains("TEMP B-TREE")
        });
        assert_eq!(unindexed.count(), 0, "{plan}");
    }
}

#[test]
fn a_page_of_waiting_instances_is_read_in_order_from_their_index() {
    let (_dir, conn) = migrated();
    for (sql, parameters) in [(crate::waiting::NEXT, 3), (crate::waiting::ANY, 0)] {
        let plan = plan(&conn, sql, parameters);
        assert!(plan.contains("instances_unplaced"), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
}
