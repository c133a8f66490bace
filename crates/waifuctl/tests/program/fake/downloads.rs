//! Templates that are downloaded or uploaded first: missing templates of `create` and `rescue`, and image files.

use super::*;
use waifud_types::Digest;

pub(super) fn download(name: &str, changes: Value) -> Value {
    let mut download = json!({"name": name, "state": "running", "source_url": "https://example.org/a",
        "checksum": null, "done_bytes": 1, "total_bytes": 2, "waiting_for": null, "error": null,
        "created_at": "2026-11-29T00:00:00Z"});
    if let (Value::Object(to), Value::Object(from)) = (&mut download, changes) {
        to.extend(from);
    }
    download
}

/// A waifud without the template `name`, whose catalog has it. Its download takes `steps` reads.
pub(super) fn without_template(name: &str, create: &str, steps: usize) -> Fake {
    let fake = Fake::start([instance("web", ID, json!({}))], &[]);
    let unknown = problem(422, "unknown-template", "the template does not exist");
    fake.script(create, [unknown, (201, instance("web", ID, json!({})))]);
    let absent = problem(404, "not-found", "not found");
    let path = format!("GET /v1/templates/{name}");
    fake.script(&path, [absent.clone(), (200, template(name))]);
    let running = (200, download(name, json!({})));
    fake.script("POST /v1/downloads", [(202, running.1.clone())]);
    let mut reads = vec![absent.clone()];
    reads.extend(vec![running; steps]);
    reads.push(absent);
    fake.script(&format!("GET /v1/downloads/{name}"), reads);
    fake
}

const CREATE: &str = "POST /v1/instances";

#[tokio::test(flavor = "multi_thread")]
async fn create_downloads_a_missing_template_from_the_catalog_and_then_creates_the_instance() {
    let fake = without_template("ubuntu-24-04", CREATE, 3);
    let (out, err) = fake.run("create web -t ubuntu-24.04 --no-ssh-key", 0).await;
    assert!(out.starts_with("web: running"), "{out}");
    assert!(
        err.contains("downloading it from https://example.org/a"),
        "{err}"
    );
    assert_eq!(fake.count("POST /v1/downloads"), 1);
    assert_eq!(fake.bodies("POST /v1/downloads")[0]["name"], "ubuntu-24-04");
    let requested: Vec<_> = fake
        .bodies(CREATE)
        .iter()
        .map(|body| body["template"].clone())
        .collect();
    assert_eq!(requested, ["ubuntu-24.04", "ubuntu-24-04"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn create_fails_with_its_download_and_creates_no_instance() {
    let fake = without_template("debian-12", CREATE, 1);
    let (_, error) = problem(422, "checksum-mismatch", "the image has another checksum");
    let failed = json!({"state": "failed", "error": error});
    let reads = [
        problem(404, "not-found", "not found"),
        (200, download("debian-12", failed)),
    ];
    fake.script("GET /v1/downloads/debian-12", reads);
    let (_, err) = fake.run("create web -t debian-12 --no-ssh-key", 1).await;
    assert!(err.contains("the image has another checksum"), "{err}");
    assert_eq!(fake.count(CREATE), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_a_wait_for_a_download_prints_once_what_it_waits_for() {
    let fake = without_template("debian-12", CREATE, 1);
    let waits = |why: &str| (200, download("debian-12", json!({"waiting_for": why})));
    let absent = problem(404, "not-found", "not found");
    let reads = [
        absent.clone(),
        waits("connecting to example.org"),
        waits("connecting to example.org"),
        waits("connecting to example.org failed; retrying"),
        absent,
    ];
    fake.script("GET /v1/downloads/debian-12", reads);
    let (_, err) = fake.run("create web -t debian-12 --no-ssh-key", 0).await;
    assert_eq!(
        err.matches("debian-12: connecting to example.org\n")
            .count(),
        1,
        "{err}"
    );
    assert!(err.contains("example.org failed; retrying"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn create_reports_an_unknown_template_that_is_not_in_the_catalog() {
    let fake = without_template("nosuch", CREATE, 1);
    let absent = problem(422, "not-in-catalog", "not in the catalog");
    fake.script("POST /v1/downloads", [absent]);
    let (_, err) = fake.run("create web -t nosuch --no-ssh-key", 1).await;
    assert!(err.contains("the template does not exist"), "{err}");
    assert_eq!(fake.count(CREATE), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_prefers_the_template_rescue_and_sends_the_users_own_keys() {
    let fake = Fake::start(
        [instance("web", ID, json!({}))],
        &[("GET /v1/templates/rescue", template("rescue"))],
    );
    let key =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJj9Zt1zMvFTIbmRXkGl0dDxx3GSSnPEGBIqYCj0P3mD you@desk";
    std::fs::create_dir(fake.dir.path().join(".ssh")).unwrap();
    std::fs::write(fake.dir.path().join(".ssh/id_ed25519.pub"), key).unwrap();
    let patch = format!("PATCH /v1/instances/{ID}");
    fake.script(&patch, [(200, instance("web", ID, json!({})))]);
    fake.run("rescue web", 0).await;
    let begin = &fake.bodies(&patch)[0]["rescue"]["begin"];
    assert_eq!(begin, &json!({"template": "rescue", "ssh_keys": [key]}));
    assert_eq!(fake.count("GET /v1/catalog"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_with_wait_ends_when_the_rescue_system_has_booted_whatever_its_cloud_init_reports()
{
    let patch = format!("PATCH /v1/instances/{ID}");
    let rescued = |state: &str| {
        let cloud_init =
            json!({"state": state, "instance_id": null, "datasource": null, "errors": []});
        let status = json!({"ready": false, "ready_by": null, "cloud_init": cloud_init});
        let mut instance = instance("web", ID, status);
        instance["spec"]["rescue"] = json!({"template": "rescue", "datasource": "openstack",
            "image": format!("sha256:{}", "1".repeat(64)), "firmware": "bios", "ssh_keys": []});
        instance
    };
    for end in ["done", "error"] {
        let states = [rescued("pending"), rescued("running"), rescued(end)];
        let fake = Fake::start(
            [&[instance("web", ID, json!({}))], &states[..]].concat(),
            &[("GET /v1/templates/rescue", template("rescue"))],
        );
        fake.script(&patch, [(200, rescued("pending"))]);
        let (out, _) = fake.run("rescue web --wait --timeout 1h", 0).await;
        assert!(out.starts_with("web: running with rescue"), "{out}");
        assert_eq!(fake.unread(), 0, "{end}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_without_a_template_of_that_name_downloads_alpine_from_the_catalog() {
    let patch = format!("PATCH /v1/instances/{ID}");
    let fake = without_template("alpine-3-22", &patch, 2);
    let entry = |name: &str| {
        json!({"name": name, "title": name, "arch": "x86_64", "url": "https://example.org/a",
            "checksums_url": "https://example.org/b", "default_user": "alpine", "min_memory_bytes": 1, "notes": null})
    };
    let catalog = page(&[entry("debian-12"), entry("alpine-3-22")]);
    fake.script("GET /v1/catalog", [(200, catalog)]);
    let (_, err) = fake.run("rescue web", 0).await;
    assert!(
        err.contains("template alpine-3-22 does not exist yet"),
        "{err}"
    );
    assert_eq!(fake.count("POST /v1/downloads"), 1);
    let orders = fake.bodies(&patch);
    assert_eq!(orders.len(), 2);
    for order in orders {
        assert_eq!(order["rescue"]["begin"]["template"], "alpine-3-22");
    }
}

/// A download that never ends, and a rescue that waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_timeout_of_a_rescue_includes_the_download() {
    let patch = format!("PATCH /v1/instances/{ID}");
    let fake = without_template("slow", &patch, 0);
    let running = (200, download("slow", json!({})));
    fake.script("GET /v1/downloads/slow", [running]);
    let (_, err) = fake
        .run("rescue web --template slow --wait --timeout 1s", 3)
        .await;
    assert!(err.contains("template slow is not downloaded yet"), "{err}");
    assert!(err.contains("nothing was changed"), "{err}");
    assert_eq!(fake.count(&patch), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_uploaded_only_if_waifud_does_not_have_the_image() {
    let mut bytes = vec![0_u8; 4096];
    bytes.splice(..4, *b"QFI\xfb");
    bytes.splice(4..8, 3_u32.to_be_bytes());
    bytes.splice(20..24, 16_u32.to_be_bytes());
    bytes.splice(24..32, (2_u64 << 30).to_be_bytes());
    let digest = Digest::of(&bytes);
    let image = |available: bool| {
        json!({"digest": digest, "size_bytes": 4096, "virtual_size_bytes": 2_u64 << 30,
            "available": available, "created_at": "2026-11-29T00:00:00Z"})
    };
    let (get, put) = (
        format!("GET /v1/images/{digest}"),
        format!("PUT /v1/images/{digest}"),
    );
    for (known, uploads) in [
        (problem(404, "not-found", "not found"), 1),
        ((200, image(false)), 1),
        ((200, image(true)), 0),
    ] {
        let fake = Fake::start([], &[("POST /v1/templates", template("mine"))]);
        fake.script(&get, [known]);
        fake.script(&put, [(201, image(true))]);
        let file = fake.dir.path().join("a.qcow2");
        std::fs::write(&file, &bytes).unwrap();
        let line = format!("template add mine --user me --file {}", file.display());
        fake.run(&line, 0).await;
        assert_eq!(fake.count(&put), uploads);
        let created = &fake.bodies("POST /v1/templates")[0];
        assert_eq!(created["image"], digest.to_string());
        assert_eq!(created["default_user"], "me");
    }
}
