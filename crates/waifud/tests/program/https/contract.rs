//! The API conforms to its OpenAPI document: schemathesis sends valid and invalid requests and checks the answers.
//!
//! `cargo xtask packages` installs schemathesis, in the versions of `https/requirements.txt`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use waifud_api::CreateToken;
use waifud_types::Role;

use crate::kit::Waifud;

/// A run takes about 30 s on an idle machine.
const LIMIT: Duration = Duration::from_secs(90);

/// Runs the command line of schemathesis. Its own script contains the path of the directory it was installed in.
const RUN: &str = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())";

/// The Python interpreter with schemathesis. Without it the test is skipped, or fails where skipping is forbidden.
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
async fn the_api_conforms_to_its_openapi_document() {
    let Some(python) = python() else { return };
    let waifud = Waifud::start();
    let request = CreateToken {
        name: "contract".to_owned(),
        role: Role::Admin,
        expires_in_s: None,
    };
    let token = waifud.client().create_token(&request).await.unwrap().secret;
    // schemathesis itself sometimes ends with an error ("inconsistent results" of its generator on a busy machine). Then
    // it is started again. A failure of the API fails the test at once.
    let mut seeds = ["7", "8", "9"].into_iter();
    let report = loop {
        let seed = seeds
            .next()
            .expect("schemathesis itself failed three times");
        let (success, report) = schemathesis(&python, &waifud, token.expose(), seed).await;
        assert!(!report.contains("= FAILURES ="), "{report}");
        if success {
            break report;
        }
        drop(std::io::stderr().write_fmt(format_args!("schemathesis itself failed:\n{report}")));
    };
    // It ran over all operations. It counts one operation fewer than the document has and does not print which.
    let operations = waifud_operations();
    let over = |count: usize| report.contains(&format!("{count} selected / {count} total"));
    assert!(
        over(operations) || over(operations - 1),
        "{operations}:\n{report}"
    );
}

/// Whether it exited with success, and what it printed.
async fn schemathesis(python: &Path, waifud: &Waifud, token: &str, seed: &str) -> (bool, String) {
    let config =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program/https/schemathesis.toml");
    let output = waifud.dir.path().join("schemathesis.txt");
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
        // It opens a connection for each request with wrong credentials, and waifud closes the oldest ones of an address.
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
    let report = std::fs::read_to_string(output).unwrap();
    (status.success(), report)
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
