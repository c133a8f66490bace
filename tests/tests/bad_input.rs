//! Invalid input of users: an error that names the field and the remedy, exit code 1, and no change.

use anyhow::{Context, Result, ensure};
use waifud_tests::World;
use waifud_tests::world::{TINY, creation, file};

/// All instances and templates of waifud, and its files.
fn everything(world: &World) -> Result<String> {
    let instances = world.waifuctl.json(&["list"])?["items"].clone();
    let templates = world.waifuctl.json(&["template", "list"])?["items"].clone();
    let files = world.node(&[
        "find",
        "/var/lib/waifud",
        "-name",
        "*.qcow2*",
        "-o",
        "-path",
        "*images*",
    ])?;
    Ok(format!("{instances}\n{templates}\n{files}"))
}

/// Runs a command that must be refused, and checks that it changed nothing.
fn refused(world: &World, args: &[&str], field: &str, code: &str) -> Result<()> {
    let before = everything(world)?;
    let outcome = world.waifuctl.run(&[args, &["--json"]].concat())?;
    ensure!(
        outcome.code == 1,
        "{args:?} ended with {}: {}",
        outcome.code,
        outcome.stderr
    );
    let problem = outcome.problem()?;
    ensure!(
        problem["code"] == code,
        "{args:?}: the code is not {code}: {problem}"
    );
    ensure!(
        problem["field"] == field,
        "{args:?}: the field is not {field}: {problem}"
    );
    ensure!(
        problem["hint"].as_str().is_some_and(|h| !h.is_empty()),
        "{args:?}: no hint: {problem}"
    );
    let text = world.waifuctl.run(args)?;
    ensure!(
        text.stderr.starts_with("error: ") && text.stderr.contains("hint: "),
        "{}",
        text.stderr
    );
    ensure!(everything(world)? == before, "{args:?} changed something");
    Ok(())
}

#[test]
fn invalid_names_templates_and_sizes_are_refused() -> Result<()> {
    World::with(|world| {
        let unknown = ["create", "x", "-t", "debain-12"];
        refused(world, &unknown, "spec.template", "unknown-template")?;
        let unnamed = ["create", "Not_A_Label", "-t", "tiny"];
        refused(world, &unnamed, "name", "invalid-name")?;
        for (option, value, field, code) in [
            ("--cpus", "0", "spec.cpus", "out-of-range"),
            ("--cpus", "4000", "spec.cpus", "out-of-range"),
            ("--memory", "900T", "spec.memory_bytes", "out-of-range"),
            ("--memory", "1K", "spec.memory_bytes", "out-of-range"),
            ("--disk", "2M", "spec.disks[0].size_bytes", "disk-too-small"),
            ("--disk", "900P", "spec.disks[0].size_bytes", "out-of-range"),
        ] {
            let create = ["create", "x", "-t", "tiny", option, value];
            refused(world, &create, field, code)?;
        }
        Ok(())
    })
}

#[test]
fn sizes_without_a_unit_and_sizes_that_are_not_positive_are_usage_errors() -> Result<()> {
    World::with(|world| {
        for size in ["20", "0G", "-1G", "big", ""] {
            let disk = format!("--disk={size}");
            let create = ["create", "x", "-t", "tiny", &disk];
            let outcome = world.waifuctl.run(&create)?;
            outcome.is_refused("--disk").context(disk)?;
        }
        Ok(())
    })
}

#[test]
fn invalid_user_data_is_refused() -> Result<()> {
    World::with(|world| {
        let large = vec![b'#'; (1 << 20) + 1];
        for (text, field, code) in [
            (
                &b"#cloud-config\nruncmd: [unclosed\n"[..],
                "user_data",
                "user-data-invalid",
            ),
            (&large, "--user-data", "user-data-too-large"),
            (b"\x7fELF\0\0\x01\xff", "--user-data", "user-data-binary"),
        ] {
            let (_file, path) = file(text)?;
            let create = ["create", "x", "-t", "tiny", "--user-data", &path];
            refused(world, &create, field, code)?;
        }
        Ok(())
    })
}

#[test]
fn files_that_are_not_images_are_refused_before_the_upload() -> Result<()> {
    World::with(|world| {
        let is_invalid = |image: &[u8]| {
            let (_file, path) = file(image)?;
            let add = ["template", "add", "bad", "--file", &path];
            refused(world, &add, "--file", "invalid-image")
        };
        is_invalid(b"hello")?;
        let mut backed = std::fs::read(&world.tiny.qcow2).context("no tiny image")?;
        backed.truncate(4096);
        if let Some(offset) = backed.get_mut(8..20) {
            offset.copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 9]);
        }
        is_invalid(&backed)?;
        let mut absurd = std::fs::read(&world.tiny.qcow2)?;
        absurd.truncate(4096);
        if let Some(size) = absurd.get_mut(24..32) {
            size.copy_from_slice(&u64::MAX.to_be_bytes());
        }
        is_invalid(&absurd)
    })
}

#[test]
fn a_name_is_unique_and_an_idempotency_key_belongs_to_one_request() -> Result<()> {
    World::with(|world| {
        let create = creation(TINY, "taken", &["--no-ssh-key"]);
        let keyed = [&create[..], &["--idempotency-key", "once"]].concat();
        let first = world.waifuctl.json(&keyed)?;
        let again = world.waifuctl.json(&keyed)?;
        ensure!(
            first["id"] == again["id"],
            "the same key made two instances"
        );
        let other = [
            &create[..],
            &["--cpus", "2", "--idempotency-key", "once", "--json"],
        ]
        .concat();
        let outcome = world.waifuctl.run(&other)?;
        outcome.is_problem("status", 409)?;
        let taken = world.waifuctl.run(&[&create[..], &["--json"]].concat())?;
        taken.is_problem("code", "name-taken")?;
        world.delete("taken")
    })
}

#[test]
fn without_capacity_an_instance_waits_and_why_reports_the_reason() -> Result<()> {
    World::with(|world| {
        let created = world.create("giant", &["--memory", "900G", "--no-ssh-key"])?;
        ensure!(created["status"]["state"] == "pending", "{created}");
        let why = world.waifuctl.run(&["why", "giant"])?;
        ensure!(
            why.stdout.contains("memory") && why.stdout.contains("hint"),
            "{}",
            why.stdout
        );
        world.delete("giant")
    })
}

#[test]
fn without_permission_or_waifud_the_error_contains_a_hint() -> Result<()> {
    World::with(|world| {
        let denied = world
            .lab
            .command_as("alder", "waifud-image", ["waifuctl", "list"])?;
        let outcome =
            waifud_lab::wait::output(&mut { denied }, std::time::Duration::from_secs(30))?;
        let text = String::from_utf8_lossy(&outcome.stderr);
        ensure!(
            outcome.status.code() == Some(1) && text.contains("waifud-admin"),
            "{text}"
        );
        let nowhere = world
            .waifuctl
            .run(&["--socket", "/nonexistent/waifud.sock", "list"])?;
        ensure!(
            nowhere.code == 2 && nowhere.stderr.contains("hint: "),
            "{nowhere:?}"
        );
        Ok(())
    })
}

#[test]
fn delete_requires_confirmation_and_reports_unknown_names() -> Result<()> {
    World::with(|world| {
        let unknown = world
            .waifuctl
            .run(&["delete", "nobody", "--yes", "--json"])?;
        unknown.is_problem("status", 404)?;
        world.create("careful", &["--memory", "900G", "--no-ssh-key"])?;
        let unasked = world.waifuctl.run(&["delete", "careful"])?;
        unasked.is_refused("--yes")?;
        world.waifuctl.json(&["protect", "careful"])?;
        let protected = world.waifuctl.run(&["delete", "careful", "--yes"])?;
        protected.is_refused("--off")?;
        world.waifuctl.json(&["protect", "careful", "--off"])?;
        world.delete("careful")
    })
}
