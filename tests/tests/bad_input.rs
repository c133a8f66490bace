//! Invalid input of users: an error that names the field and the remedy, exit code 1, and no change.

use anyhow::{Context, Result, ensure};
use waifud_tests::World;

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
fn refused(world: &World, args: &[&str], field: Option<&str>, code: &str) -> Result<()> {
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
    if let Some(field) = field {
        ensure!(
            problem["field"] == field,
            "{args:?}: the field is not {field}: {problem}"
        );
    }
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

fn file(content: &[u8]) -> Result<(tempfile::NamedTempFile, String)> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), content)?;
    let path = file.path().display().to_string();
    Ok((file, path))
}

#[test]
fn invalid_names_templates_and_sizes_are_refused() -> Result<()> {
    World::with(|world| {
        refused(
            world,
            &["create", "x", "-t", "debain-12"],
            Some("spec.template"),
            "unknown-template",
        )?;
        refused(
            world,
            &["create", "Not_A_Label", "-t", "tiny"],
            Some("name"),
            "invalid-name",
        )?;
        refused(
            world,
            &["create", "x", "-t", "tiny", "--cpus", "0"],
            Some("spec.cpus"),
            "out-of-range",
        )?;
        refused(
            world,
            &["create", "x", "-t", "tiny", "--cpus", "4000"],
            Some("spec.cpus"),
            "out-of-range",
        )?;
        refused(
            world,
            &["create", "x", "-t", "tiny", "--memory", "900T"],
            Some("spec.memory_bytes"),
            "out-of-range",
        )?;
        refused(
            world,
            &["create", "x", "-t", "tiny", "--memory", "1K"],
            Some("spec.memory_bytes"),
            "out-of-range",
        )?;
        refused(
            world,
            &["create", "x", "-t", "tiny", "--disk", "2M"],
            Some("spec.disks[0].size_bytes"),
            "disk-too-small",
        )?;
        refused(
            world,
            &["create", "x", "-t", "tiny", "--disk", "900P"],
            Some("spec.disks[0].size_bytes"),
            "out-of-range",
        )?;
        Ok(())
    })
}

#[test]
fn sizes_without_a_unit_and_sizes_that_are_not_positive_are_usage_errors() -> Result<()> {
    World::with(|world| {
        for size in ["20", "0G", "-1G", "big", ""] {
            let outcome =
                world
                    .waifuctl
                    .run(&["create", "x", "-t", "tiny", &format!("--disk={size}")])?;
            ensure!(
                outcome.code == 1 && outcome.stderr.contains("--disk"),
                "{size:?}: {outcome:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn invalid_user_data_is_refused() -> Result<()> {
    World::with(|world| {
        let (_yaml, yaml) = file(b"#cloud-config\nruncmd: [unclosed\n")?;
        refused(
            world,
            &["create", "x", "-t", "tiny", "--user-data", &yaml],
            Some("user_data"),
            "user-data-invalid",
        )?;
        let (_large, large) = file(&vec![b'#'; (1 << 20) + 1])?;
        refused(
            world,
            &["create", "x", "-t", "tiny", "--user-data", &large],
            Some("--user-data"),
            "user-data-too-large",
        )?;
        let (_binary, binary) = file(b"\x7fELF\0\0\x01\xff")?;
        refused(
            world,
            &["create", "x", "-t", "tiny", "--user-data", &binary],
            Some("--user-data"),
            "user-data-binary",
        )?;
        Ok(())
    })
}

#[test]
fn files_that_are_not_images_are_refused_before_the_upload() -> Result<()> {
    World::with(|world| {
        let (_text, text) = file(b"hello")?;
        refused(
            world,
            &["template", "add", "bad", "--file", &text],
            Some("--file"),
            "invalid-image",
        )?;
        let mut backed = std::fs::read(&world.tiny.qcow2).context("no tiny image")?;
        backed.truncate(4096);
        if let Some(offset) = backed.get_mut(8..20) {
            offset.copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 9]);
        }
        let (_backed, backed) = file(&backed)?;
        refused(
            world,
            &["template", "add", "bad", "--file", &backed],
            Some("--file"),
            "invalid-image",
        )?;
        let mut absurd = std::fs::read(&world.tiny.qcow2)?;
        absurd.truncate(4096);
        if let Some(size) = absurd.get_mut(24..32) {
            size.copy_from_slice(&u64::MAX.to_be_bytes());
        }
        let (_absurd, absurd) = file(&absurd)?;
        refused(
            world,
            &["template", "add", "bad", "--file", &absurd],
            Some("--file"),
            "invalid-image",
        )
    })
}

#[test]
fn a_name_is_unique_and_an_idempotency_key_belongs_to_one_request() -> Result<()> {
    World::with(|world| {
        let create = [
            "create",
            "taken",
            "-t",
            "tiny",
            "--memory",
            "128M",
            "--disk",
            "1G",
            "--no-ssh-key",
        ];
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
        ensure!(
            outcome.code == 1 && outcome.problem()?["status"] == 409,
            "{outcome:?}"
        );
        let taken = world.waifuctl.run(&[&create[..], &["--json"]].concat())?;
        ensure!(
            taken.code == 1 && taken.problem()?["code"] == "name-taken",
            "{taken:?}"
        );
        world.delete("taken")
    })
}

#[test]
fn without_capacity_an_instance_waits_and_why_reports_the_reason() -> Result<()> {
    World::with(|world| {
        let created = world.waifuctl.json(&[
            "create",
            "giant",
            "-t",
            "tiny",
            "--memory",
            "900G",
            "--disk",
            "1G",
            "--no-ssh-key",
        ])?;
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
        ensure!(
            unknown.code == 1 && unknown.problem()?["status"] == 404,
            "{unknown:?}"
        );
        world.waifuctl.json(&[
            "create",
            "careful",
            "-t",
            "tiny",
            "--memory",
            "900G",
            "--disk",
            "1G",
            "--no-ssh-key",
        ])?;
        let unasked = world.waifuctl.run(&["delete", "careful"])?;
        ensure!(
            unasked.code == 1 && unasked.stderr.contains("--yes"),
            "{unasked:?}"
        );
        world.waifuctl.json(&["protect", "careful"])?;
        let protected = world.waifuctl.run(&["delete", "careful", "--yes"])?;
        ensure!(
            protected.code == 1 && protected.stderr.contains("--off"),
            "{protected:?}"
        );
        world.waifuctl.json(&["protect", "careful", "--off"])?;
        world.delete("careful")
    })
}
