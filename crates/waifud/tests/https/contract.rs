//! The API conforms to its OpenAPI document: schemathesis sends valid and invalid requests.
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

/// The run takes about 30 s on an idle machine.
const LIMIT: Duration = Duration::from_secs(90);

/// The Python code of the `schemathesis` command; the command itself contains the path of its installation.
const RUN: &str = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())";

/// The Python with schemathesis, or why there is none; fails if skips are forbidden.
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
async fn the_api_conforms_to_its_document() {
    let Some(python) = python() else { return };
    let waifud = Waifud::start();
    let request = CreateToken {
        name: "contract".to_owned(),
        role: Role::Admin,
        expires_in_s: None,
    };
    let local = Client::unix(&waifud.dir.path().join("u.sock")).unwrap();
    let token = local.create_token(&request).await.unwrap().secret;
    // schemathesis itself sometimes fails ("inconsistent results" of its generator on a busy machine). It is then run again;
    // a finding fails the test the first time.
    let mut seeds = ["7", "8", "9"].into_iter();
    let output = loop {
        let seed = seeds
            .next()
            .expect("schemathesis itself failed three times");
        let (success, output) = schemathesis(&python, &waifud, token.expose(), seed).await;
        assert!(!output.contains("= FAILURES ="), "{output}");
        if success {
            break output;
        }
        drop(std::io::stderr().write_fmt(format_args!("schemathesis itself failed:\n{output}")));
    };
    // It ran over all operations. It counts one operation less than the document has and does not print which.
    let operations = waifud_operations();
    let over = |count: usize| output.contains(&format!("{count} selected / {count} total"));
    assert!(
        over(operations) || over(operations - 1),
        "{operations}:\n{output}"
    );
}

/// Whether it succeeded, and its output.
async fn schemathesis(python: &Path, waifud: &Waifud, token: &str, seed: &str) -> (bool, String) {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/https/schemathesis.toml");
    let output = waifud.dir.path().join("output");
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
        // It opens a connection for each probe with invalid credentials, and waifud closes the oldest ones of an address.
        .args(["--request-retries", "3"])
        .args(["--generation-database", "none", "--request-timeout", "20"])
        .current_dir(waifud.dir.path())
        .env_remove("HTTPS_PROXY")
        .env_remove("https_proxy")
        .stdout(std::fs::File::create(&output).unwrap())
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
    let output = std::fs::read_to_string(output).unwrap();
    (status.success(), output)
}

/// The number of operations in the committed document.
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
