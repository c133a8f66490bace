//! The API does what its OpenAPI document says: schemathesis sends what the document allows, and what it does not.
//!
//! `cargo xtask packages` installs schemathesis, in the versions of `https/requirements.txt`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use waifud_api::CreateToken;
use waifud_api::client::Client;
use waifud_types::Role;

use super::kit::Waifud;

/// It takes about 30 s on a calm machine.
const LIMIT: Duration = Duration::from_secs(90);

/// What `schemathesis` on the command line is; its program names the directory that it was installed in.
const RUN: &str = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())";

/// The Python that has schemathesis; says why not, or fails where nothing may be skipped.
fn python() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let python = target.join("schemathesis/bin/python");
    let works = Command::new(&python)
        .args(["-c", RUN, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if works {
        return Some(python);
    }
    waifud_kit::testing::skip("schemathesis is not installed; `cargo xtask packages` installs it");
    None
}

#[tokio::test]
async fn the_api_is_as_its_document_describes_it() {
    let Some(python) = python() else { return };
    let waifud = Waifud::start();
    let request = CreateToken {
        name: "contract".to_owned(),
        role: Role::Admin,
        expires_in_s: None,
    };
    let local = Client::unix(&waifud.dir.path().join("u.sock")).unwrap();
    let token = local.create_token(&request).await.unwrap().secret;
    // schemathesis itself ends with an error now and then ("inconsistent results" of its generator on a busy machine).
    // That is no finding, and it is started again; a finding is one at the first time.
    let mut seeds = ["7", "8", "9"].into_iter();
    let said = loop {
        let seed = seeds
            .next()
            .expect("schemathesis failed by itself three times");
        let (success, said) = schemathesis(&python, &waifud, token.expose(), seed).await;
        assert!(!said.contains("= FAILURES ="), "{said}");
        if success {
            break said;
        }
        drop(std::io::stderr().write_fmt(format_args!("schemathesis failed by itself:\n{said}")));
    };
    // That it ran, and over everything. It counts one operation fewer than the document has; which one it leaves out is
    // not printed.
    let operations = waifud_operations();
    let over = |count: usize| said.contains(&format!("{count} selected / {count} total"));
    assert!(
        over(operations) || over(operations - 1),
        "{operations}:\n{said}"
    );
}

/// Whether it exited with success, and what it printed.
async fn schemathesis(python: &Path, waifud: &Waifud, token: &str, seed: &str) -> (bool, String) {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/https/schemathesis.toml");
    let said = waifud.dir.path().join("said");
    let mut child = Command::new(python)
        .args(["-c", RUN, "--config-file"])
        .arg(config)
        .arg("run")
        .arg(format!("https://{}/v1/openapi.json", waifud.at))
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .arg("--tls-verify")
        .arg(waifud.pki().join("ca.crt"))
        .args(["--seed", seed, "--max-examples", "5", "--workers", "1"])
        .args(["--max-failures", "100", "--no-color"])
        // It opens a connection for each probe with wrong credentials, and waifud ends an address's oldest ones.
        .args(["--request-retries", "3"])
        .args(["--generation-database", "none", "--request-timeout", "20"])
        .current_dir(waifud.dir.path())
        .env_remove("HTTPS_PROXY")
        .env_remove("https_proxy")
        .stdout(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let said = std::fs::read_to_string(said).unwrap();
    (status.success(), said)
}

/// How many operations the document has, as it is kept in the repository.
fn waifud_operations() -> usize {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/openapi.json");
    let document: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    paths
        .values()
        .map(|operations| operations.as_object().unwrap().len())
        .sum()
}
