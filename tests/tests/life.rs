//! The life of an instance on one machine: it is created, configured, reached and deleted, and leaves nothing.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::wait;
use waifud_tests::world::{TINY, file};
use waifud_tests::{Guest, World, home, reach};

/// Lines about domains, files, rules and interfaces that contain `needle`.
fn traces(world: &World, needle: &str) -> Result<String> {
    let parts = [
        world.node(&[
            "virsh",
            "-q",
            "-c",
            "qemu:///system",
            "list",
            "--all",
            "--name",
            "--uuid",
        ])?,
        world.node(&[
            "find",
            "/var/lib/waifud-agent",
            "/var/lib/waifud-metadata",
            "/run/waifud-agent",
            "-name",
            "*",
        ])?,
        world.node(&["nft", "list", "ruleset"])?,
        world.node(&["ip", "-o", "link"])?,
    ];
    Ok(parts
        .iter()
        .flat_map(|p| p.lines())
        .filter(|l| l.contains(needle))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// Waits until cloud-init's result is known, which may be after its phone-home, and contains this datasource.
fn found_by(world: &World, name: &str, datasource: &str) -> Result<Value> {
    let what = format!("its documents to come from {datasource}");
    world.until(name, &what, |shown| {
        shown["status"]["cloud_init"]["datasource"] == datasource
    })
}

#[test]
fn a_guest_is_created_configured_by_its_own_documents_and_leaves_nothing_when_deleted() -> Result<()>
{
    World::with(|world| {
        let script = tempfile::NamedTempFile::new()?;
        std::fs::write(
            script.path(),
            "#!/bin/sh\necho ran-once | tee -a /root/user-data-ran\n",
        )?;
        let path = script.path().display().to_string();
        // Its documents are on a disk, which has to be removed as well. Most other guests here use OpenStack's service.
        world.add_template("by-disk", &["--datasource", "cidata"])?;
        let more = ["--user-data", &path, "--label", "tier=web"];
        let guest = world.ready_guest_of("by-disk", "web", &more)?;
        let shown = found_by(world, "web", "DataSourceNoCloud [seed=/dev/vdb]")?;
        ensure!(shown["status"]["state"] == "running", "{shown}");
        ensure!(shown["status"]["ready"] == true, "{shown}");
        ensure!(shown["status"]["cloud_init"]["state"] == "done", "{shown}");
        ensure!(shown["spec"]["user_data"]["size_bytes"] == 53, "{shown}");
        ensure!(
            !shown.to_string().contains("ran-once"),
            "user-data is shown: {shown}"
        );

        let ip = world.waifuctl.run(&["ip", "web"])?;
        ensure!(
            ip.stdout.trim() == guest.address,
            "ip printed {:?}",
            ip.stdout
        );
        ensure!(guest.run("hostname")?.trim() == "web");
        ensure!(guest.run("cat /root/user-data-ran")?.trim() == "ran-once");
        reach::every_way(&guest)?;
        let listed = world.waifuctl.run(&["list", "--label", "tier=web"])?;
        ensure!(
            listed.stdout.contains("web") && listed.stdout.contains("running"),
            "{}",
            listed.stdout
        );

        let id = shown["id"].as_str().context("no id")?.to_owned();
        let mac = shown
            .pointer("/spec/nics/0/mac")
            .and_then(Value::as_str)
            .context("no mac")?
            .to_owned();
        ensure!(
            !traces(world, &id)?.is_empty(),
            "no object on the node contains the instance's id"
        );
        ensure!(
            !traces(world, &mac)?.is_empty(),
            "no rule contains its MAC address"
        );
        world.delete("web")?;
        for needle in [&id, &mac, &guest.address] {
            let left = traces(world, needle)?;
            ensure!(left.is_empty(), "left behind: {left}");
        }
        let gone = world.waifuctl.run(&["show", "web", "--json"])?;
        gone.is_problem("status", 404)?;
        Ok(())
    })
}

/// A small guest with this user-data, once it is ready.
fn with_user_data<'a>(world: &'a World, name: &str, text: &[u8]) -> Result<Guest<'a>> {
    let (_file, path) = file(text)?;
    world.ready_guest(name, &["--user-data", &path])
}

#[test]
fn the_next_boot_reads_user_data_that_was_edited_without_a_re_run() -> Result<()> {
    World::with(|world| {
        let guest = with_user_data(world, "edited", b"#!/bin/sh\necho first >> /root/ran\n")?;
        guest.run_when_up("grep first /root/ran && grep first /var/lib/cloud/user-data")?;

        let change =
            serde_json::json!({"user_data": "#!/bin/sh\necho second >> /root/ran\n"}).to_string();
        let socket = world.waifuctl.socket.display().to_string();
        let mut curl = std::process::Command::new("curl");
        curl.args([
            "-sS",
            "--fail-with-body",
            "--unix-socket",
            &socket,
            "-X",
            "PATCH",
        ]);
        curl.args([
            "-H",
            "content-type: application/json",
            "-d",
            &change,
            "http://waifud/v1/instances/edited",
        ]);
        wait::run(&mut curl, std::time::Duration::from_secs(30))?;
        let changed = world.until("edited", "the change to be observed", |i| {
            i["status"]["observed_generation"] == i["generation"] && i["generation"] != 1
        })?;
        ensure!(
            !changed.to_string().contains("second"),
            "user-data is shown"
        );

        let booted = guest.run("cat /proc/sys/kernel/random/boot_id")?;
        // The reboot breaks the connection; the next boot is checked below.
        let _broken = guest.run("reboot");
        wait::until("the next boot", std::time::Duration::from_mins(3), || {
            let now =
                guest.run("cat /proc/sys/kernel/random/boot_id && cat /run/cloud-init/result.json");
            Ok(now.ok().filter(|text| !text.starts_with(booted.trim())))
        })?;
        let read = guest.run("cat /var/lib/cloud/user-data")?;
        ensure!(read.contains("second"), "the next boot read {read:?}");
        ensure!(
            guest.run("cat /root/ran")?.trim() == "first",
            "user-data ran again without --re-run"
        );
        run_again(&guest)?;
        // A deletion continues when no client waits for it.
        world.waifuctl.json(&["delete", "edited", "--yes"])?;
        world
            .waifuctl
            .json(&["wait", "edited", "--for", "deleted"])?;
        ensure!(world.waifuctl.run(&["show", "edited"])?.code == 1);
        Ok(())
    })
}

/// New user-data runs at the next boot. A wait for *ready* after the reboot waits for that boot, so that the first
/// login succeeds.
fn run_again(guest: &Guest) -> Result<()> {
    let waifuctl = &guest.world.waifuctl;
    let (_third, path) = file(b"#!/bin/sh\necho third >> /root/ran\n")?;
    let name = guest.name.as_str();
    waifuctl.json(&["edit", name, "--user-data", &path, "--re-run", "--yes"])?;
    waifuctl.json(&["reboot", name])?;
    waifuctl.json(&["wait", name, "--for", "ready"])?;
    let key = guest.private_key();
    let ran = waifuctl.run(&["ssh", name, "-i", &key, "--", "cat", "/root/ran"])?;
    ensure!(ran.code == 0 && ran.stdout == "first\nthird\n", "{ran:?}");
    Ok(())
}

#[test]
fn a_guest_with_forged_requests_gets_only_its_own_documents() -> Result<()> {
    World::with(|world| {
        let victim = with_user_data(world, "victim", b"#!/bin/sh\n# the-secret-of-victim\n")?;
        world.add_template("by-url", &["--datasource", "nocloud"])?;
        let attacker = world.ready_guest_of("by-url", "attacker", &[])?;
        found_by(
            world,
            "attacker",
            "DataSourceNoCloudNet [seed=dmi,http://169.254.169.254/nocloud/]",
        )?;
        let fetch = |header: &str| {
            attacker.run_when_up(&format!(
                "wget -q -O - {header} http://169.254.169.254/openstack/latest/meta_data.json; \
                 wget -q -O - {header} http://169.254.169.254/openstack/latest/user_data; true"
            ))
        };
        let address = &victim.address;
        for header in [
            String::new(),
            format!("--header 'X-Forwarded-For: {address}'"),
            format!("--header 'Forwarded: for={address}'"),
            format!("--header 'X-Real-IP: {address}'"),
            format!("--header 'Host: {address}'"),
            "--header 'X-Instance-ID: victim'".to_owned(),
        ] {
            let got = fetch(&header)?;
            ensure!(
                got.contains("\"attacker\""),
                "{header}: not its own documents: {got}"
            );
            ensure!(
                !got.contains("the-secret-of-victim") && !got.contains("\"victim\""),
                "{header}: {got}"
            );
        }
        // With the victim's address as its source, it gets no answer.
        let before = home::spoofed(world)?;
        let forged = attacker.run(&format!(
            "exec 2>&1; via=\"169.254.169.254/32 via $(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p')\"; \
             ip addr add {address}/32 dev eth0; ip route replace $via src {address}; ip route get 169.254.169.254; \
             timeout 5 wget -q -O - http://169.254.169.254/openstack/latest/user_data; \
             ip route replace $via; ip addr del {address}/32 dev eth0; true"
        ))?;
        let after = home::spoofed(world)?;
        ensure!(
            after > before,
            "no forged packet was dropped ({before}, {after}): {forged}"
        );
        ensure!(
            !forged.contains("the-secret-of-victim"),
            "a forged source got the victim's documents"
        );
        let why = world.waifuctl.json(&["why", "attacker"])?;
        let asked = |document: &str| {
            let requests = why.pointer("/evidence/requests").and_then(Value::as_array);
            requests.is_some_and(|all| {
                let good = |seen: &&Value| seen["status"] == 200;
                let path = |seen: &Value| seen["path"].as_str().map(str::to_owned);
                all.iter()
                    .filter(good)
                    .filter_map(path)
                    .any(|path| path.ends_with(document))
            })
        };
        for document in ["nocloud/meta-data", "nocloud/user-data"] {
            ensure!(asked(document), "why does not list {document}: {why:#}");
        }
        ensure!(
            why.pointer("/evidence/dhcp_acknowledged_at")
                .is_some_and(Value::is_string),
            "{why:#}"
        );
        ensure!(
            fetch("")?.contains("\"attacker\""),
            "the attacker does not get its own documents after the attempt"
        );
        world.delete("attacker")?;
        world.delete("victim")
    })
}

#[test]
fn an_instance_is_deleted_while_it_is_being_created() -> Result<()> {
    World::with(|world| {
        for round in 0..3 {
            let name = format!("hasty{round}");
            world.create(&name, &["--no-ssh-key"])?;
            let id = world.show(&name)?["id"]
                .as_str()
                .context("no id")?
                .to_owned();
            world.delete(&name)?;
            let left = traces(world, &id)?;
            ensure!(left.is_empty(), "left behind: {left}");
        }
        Ok(())
    })
}

#[test]
fn why_and_events_report_the_history() -> Result<()> {
    World::with(|world| {
        // With 128M, GRUB runs out of memory under UEFI.
        let more = ["--datasource", "ec2", "--firmware", "uefi"];
        world.add_template("by-ec2", &more)?;
        let guest = world.ready_guest_of("by-ec2", "storied", &["--memory", "256M"])?;
        found_by(world, "storied", "DataSourceEc2Local")?;
        // cloud-init recognizes EC2 by an equal UUID and serial number that start with `ec2`.
        let marks = guest.run_when_up(
            "ls -d /sys/firmware/efi && cd /sys/class/dmi/id && cat product_uuid product_serial",
        )?;
        let marks: Vec<&str> = marks.lines().collect();
        ensure!(
            matches!(marks.as_slice(), [_, uuid, serial] if uuid == serial && uuid.starts_with("ec2")),
            "{marks:?}"
        );
        let why = world.waifuctl.run(&["why", "storied"])?;
        // How its node was chosen, its lease, and its requests to the metadata service.
        let parts = [
            "  placement, when waifud chose the node:\n",
            "alder",
            "dhcp ack ",
            "user-data ",
        ];
        ensure!(
            why.code == 0 && parts.iter().all(|part| why.stdout.contains(part)),
            "{}",
            why.stdout
        );
        let events = world.waifuctl.json(&["events", "storied"])?;
        let items = events["items"].as_array().context("no items")?;
        let kinds: Vec<_> = items.iter().filter_map(|e| e["kind"].as_str()).collect();
        for kind in ["instance.created", "instance.started", "instance.ready"] {
            ensure!(kinds.contains(&kind), "{kind} is missing in {kinds:?}");
        }
        world.delete("storied")
    })
}

#[test]
fn a_guest_that_does_not_boot_is_repaired_from_a_rescue_system_with_its_disk_attached() -> Result<()>
{
    World::with(|world| {
        let image = waifud_images::build(
            waifud_images::Guest::DebianBookworm,
            &waifud_images::default_cache_dir(),
            &|line| eprintln!("{line}"),
        )?;
        let image = image.qcow2.display().to_string();
        world
            .waifuctl
            .json(&["template", "add", "big", "--file", &image])?;
        // It does not boot in this test, which only needs the disk of another system.
        let created = [
            "create",
            "broken",
            "-t",
            "big",
            "--memory",
            "128M",
            "--no-start",
        ];
        world.waifuctl.json(&created)?;
        // It has run before, so its disk has a bus address and is the first disk of the guest.
        world.waifuctl.json(&["start", "broken"])?;
        world.until("broken", "running", |i| i["status"]["state"] == "running")?;
        let key = world.public_key.display().to_string();
        let begin = ["rescue", "broken", "-t", TINY, "--ssh-key", &key, "--force"];
        world.waifuctl.json(&begin)?;
        // After the wait, the first login must succeed.
        world.waifuctl.json(&["wait", "broken", "--for", "ready"])?;
        let private = world.public_key.with_extension("").display().to_string();
        let login = ["ssh", "broken", "-i", &private, "--", "hostname"];
        let outcome = world.waifuctl.run(&login)?;
        ensure!(
            outcome.code == 0 && outcome.stdout == "broken\n",
            "{outcome:?}"
        );
        let shown = world.show("broken")?;
        let address = shown.pointer("/status/addresses/0/address");
        let guest = Guest {
            world,
            name: "broken".to_owned(),
            address: address
                .and_then(Value::as_str)
                .context("no address")?
                .to_owned(),
        };
        guest.run("mkdir -p /mnt && mount -t ext4 /dev/vdb1 /mnt")?;
        ensure!(guest.run("cat /mnt/etc/os-release")?.contains("Debian"));
        ensure!(guest.run("hostname")?.trim() == "broken");
        guest.run("echo repaired > /mnt/root/repaired; touch /here; umount /mnt; sync")?;
        let why = world.waifuctl.run(&["why", "broken"])?;
        ensure!(why.stdout.contains("rescue broken --end"), "{}", why.stdout);
        let pool = || world.node(&["find", "/var/lib/waifud-agent", "-name", "*rescue*"]);
        ensure!(
            pool()?.contains("rescue"),
            "the rescue system has no disk of its own"
        );

        // Its own disk again, as the domain's disks show. Booting the system would take a minute.
        world
            .waifuctl
            .json(&["stop", "broken", "--force", "--wait"])?;
        world
            .waifuctl
            .json(&["rescue", "broken", "--end", "--wait"])?;
        world
            .waifuctl
            .json(&["stop", "broken", "--force", "--wait"])?;
        ensure!(pool()?.is_empty(), "left behind: {}", pool()?);
        let disks = [
            "virsh",
            "-q",
            "-c",
            "qemu:///system",
            "domblklist",
            "broken",
        ];
        ensure!(world.node(&disks)?.trim().lines().count() == 1);

        world.waifuctl.json(&[&begin[..], &["--wait"]].concat())?;
        guest.run_when_up("mkdir -p /mnt && mount -t ext4 -o ro /dev/vdb1 /mnt")?;
        ensure!(guest.run("cat /mnt/root/repaired")?.trim() == "repaired");
        ensure!(guest.run("ls /here 2>/dev/null || echo gone")?.trim() == "gone");
        world.delete("broken")?;
        ensure!(pool()?.is_empty(), "left behind: {}", pool()?);
        Ok(())
    })
}
