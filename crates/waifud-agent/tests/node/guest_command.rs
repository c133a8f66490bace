//! Guest agent commands: they run in the stream's own instance and are answered once.

use std::collections::HashMap;
use std::io::{Seek, Write};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waifud_api::agent::AgentInstance;
use waifud_api::guest_command::{
    ExecRequest, ExecResult, GuestAnswer, GuestCommand, STDERR_MAX, STDOUT_MAX, SetPassword,
};
use waifud_api::stream::{RefusalReason, StreamId, StreamKind, StreamOrder};
use waifud_hypervisor::fake::AgentScript;
use waifud_types::Secret;

use crate::test_node::TestNode;

const DEADLINE: Duration = Duration::from_mins(1);

/// A guest agent that runs programs on this machine like QEMU's agent: with input, and with a status request until each
/// ends. It sets one user's password.
pub fn agent() -> AgentScript {
    let ended: Mutex<HashMap<u64, (bool, Output)>> = Mutex::default();
    Arc::new(move |command: &Value| {
        let arguments = &command["arguments"];
        let mut ended = ended.lock().unwrap();
        match command["execute"].as_str()? {
            "guest-exec" => {
                assert_eq!(arguments["capture-output"], true);
                let pid = 42 + u64::try_from(ended.len()).unwrap();
                ended.insert(pid, (false, run(arguments)));
                Some(json!({"pid": pid}))
            }
            "guest-exec-status" => {
                let (looked, output) = ended.get_mut(&arguments["pid"].as_u64()?)?;
                if !std::mem::replace(looked, true) {
                    return Some(json!({"exited": false}));
                }
                Some(json!({
                    "exited": true,
                    "exitcode": output.status.code(),
                    "out-data": BASE64.encode(&output.stdout),
                    "err-data": BASE64.encode(&output.stderr),
                }))
            }
            // The protocol uses base64.
            "guest-set-user-password" if arguments["password"] == "aHVudGVyMg==" => {
                assert_eq!(arguments["username"], "debian");
                Some(json!({}))
            }
            _ => None,
        }
    })
}

fn run(arguments: &Value) -> Output {
    let words: Vec<String> = serde_json::from_value(arguments["arg"].clone()).unwrap();
    let input = arguments["input-data"].as_str().unwrap_or_default();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&BASE64.decode(input).unwrap()).unwrap();
    file.rewind().unwrap();
    Command::new(arguments["path"].as_str().unwrap())
        .args(words)
        .stdin(file)
        .output()
        .unwrap()
}

pub async fn ask(
    node: &TestNode,
    instance: &AgentInstance,
    number: u8,
    line: &str,
) -> Option<GuestAnswer> {
    let order = StreamOrder {
        id: StreamId::from_bytes([number; 32]),
        instance: instance.id,
        epoch: instance.epoch,
        kind: StreamKind::GuestCommand,
    };
    let asked = tokio::time::timeout(DEADLINE, node.waifud.request_stream(order));
    let mut wire = asked.await.unwrap().unwrap().unwrap();
    wire.write_all(format!("{line}\n").as_bytes())
        .await
        .unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, wire.read_to_end(&mut answer));
    read.await.unwrap().unwrap();
    serde_json::from_slice(&answer).ok()
}

pub fn exec(words: &[&str], input: Option<&[u8]>) -> GuestCommand {
    GuestCommand::Exec(ExecRequest {
        command: words.iter().map(|&word| word.to_owned()).collect(),
        timeout_s: None,
        stdin_base64: input.map(|input| Secret::new(BASE64.encode(input))),
    })
}

/// The result of a program with its decoded output and errors.
async fn ran(
    node: &TestNode,
    instance: &AgentInstance,
    command: GuestCommand,
) -> (ExecResult, [Vec<u8>; 2]) {
    static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let line = serde_json::to_string(&command).unwrap();
    let result = match ask(node, instance, number, &line).await {
        Some(GuestAnswer::Exec(result)) => Ok(result),
        other => Err(other),
    };
    let result = result.unwrap();
    let outputs = [&result.stdout_base64, &result.stderr_base64];
    let outputs = outputs.map(|text| BASE64.decode(text).unwrap());
    (result, outputs)
}

/// A ready instance with a guest agent that runs programs.
async fn running() -> (TestNode, AgentInstance) {
    let node = TestNode::started();
    let instance = node.instance("web");
    node.waifud.put(instance.clone());
    node.until_ready(instance.id).await;
    node.hypervisor.set_agent(instance.id, Some(agent()));
    (node, instance)
}

#[tokio::test]
async fn output_is_bounded_input_arrives_and_exit_codes_are_those_of_a_shell() {
    let (node, instance) = running().await;
    let run = async |words: &[&str], input: Option<&[u8]>| {
        ran(&node, &instance, exec(words, input)).await
    };

    // On both outputs more than libvirt carries and a guest agent survives. The program is not affected.
    let flood = "head -c 12000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 9";
    let (result, [out, err]) = run(&["sh", "-c", flood], None).await;
    assert_eq!((out.len(), err.len()), (STDOUT_MAX, STDERR_MAX));
    assert_eq!((result.exit_code, result.truncated), (9, true));
    let carried = result.stdout_base64.len() + result.stderr_base64.len();
    assert!(carried < 4 << 20, "libvirt does not carry {carried} bytes");
    let (result, [out, _]) = run(&["head", "-c", &STDOUT_MAX.to_string(), "/dev/zero"], None).await;
    assert_eq!((out.len(), result.truncated), (STDOUT_MAX, false));

    let input: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let (result, [out, err]) = run(&["cat"], Some(&input)).await;
    assert!(result.exit_code == 0 && out == input && err.is_empty());
    let (_, [out, _]) = run(&["cat"], None).await;
    assert!(out.is_empty());

    let words = ["printf", "%s\n", "a  b", "$HOME", "'", "--"];
    let (_, [out, _]) = run(&words, None).await;
    assert_eq!(
        out, b"a  b\n$HOME\n'\n--\n",
        "a shell interpreted the arguments"
    );
    let (result, [_, err]) = run(&["no-such-program"], None).await;
    let message = String::from_utf8(err).unwrap();
    assert!(
        result.exit_code == 127 && message.contains("no-such-program"),
        "{message}"
    );
    let (result, [_, err]) = run(&["/etc/passwd"], None).await;
    let message = String::from_utf8(err).unwrap();
    assert!(
        result.exit_code == 126 && message.contains("/etc/passwd"),
        "{message}"
    );
    let (result, _) = run(&["shift"], None).await;
    assert_eq!(result.exit_code, 127, "a builtin of the shell was run");
    let (result, _) = run(&["sh", "-c", "kill -9 $$"], None).await;
    assert_eq!(result.exit_code, 128 + 9);
    let (result, [out, err]) = run(&["sh", "-c", "echo out; echo err >&2"], None).await;
    assert_eq!((&out[..], &err[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert!(result.exit_code == 0 && !result.truncated);
    node.delete(instance.id).await;
}

#[tokio::test]
async fn a_program_is_run_a_password_is_set_and_nothing_else_is_done() {
    let (node, instance) = running().await;

    let text = |command: &GuestCommand| serde_json::to_string(command).unwrap();
    let exec = text(&exec(&["sh", "-c", "echo hi; exit 3"], None));
    let expected = ExecResult {
        exit_code: 3,
        stdout_base64: "aGkK".to_owned(),
        ..ExecResult::default()
    };
    let answer = ask(&node, &instance, 201, &exec).await;
    assert_eq!(answer, Some(GuestAnswer::Exec(expected)));
    let passwd = text(&GuestCommand::SetPassword(SetPassword {
        user: "debian".to_owned(),
        password: Secret::new("hunter2".to_owned()),
    }));
    let answer = ask(&node, &instance, 202, &passwd).await;
    assert_eq!(answer, Some(GuestAnswer::PasswordSet));
    let other = r#"{"do": "guest-shutdown"}"#;
    assert_eq!(ask(&node, &instance, 203, other).await, None);

    node.hypervisor
        .set_agent(instance.id, Some(Arc::new(|_| None)));
    let Some(GuestAnswer::Refused(why)) = ask(&node, &instance, 204, &exec).await else {
        panic!("no agent, and no refusal");
    };
    assert_eq!(why.reason, RefusalReason::NoGuestAgent);
    node.delete(instance.id).await;
}
