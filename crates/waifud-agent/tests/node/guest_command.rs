//! Commands for the guest agent: carried out in the stream's own instance, answered once.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waifud_api::agent::AgentInstance;
use waifud_api::guest_command::{ExecRequest, ExecResult, GuestAnswer, GuestCommand, SetPassword};
use waifud_api::stream::{RefusalReason, StreamId, StreamKind, StreamOrder};
use waifud_hypervisor::fake::AgentScript;
use waifud_types::Secret;

use crate::world::World;

const DEADLINE: Duration = Duration::from_mins(1);

/// A guest agent that runs one program, which needs a second look, and sets one user's password.
fn agent() -> AgentScript {
    let looks = Arc::new(std::sync::atomic::AtomicU8::new(0));
    Arc::new(move |command: &Value| {
        let arguments = &command["arguments"];
        match command["execute"].as_str()? {
            "guest-exec" if arguments["path"] == "sh" => {
                assert_eq!(arguments["arg"], json!(["-c", "exit 3"]));
                Some(json!({"pid": 42}))
            }
            "guest-exec-status" if arguments["pid"] == 42 => {
                let first = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
                Some(if first {
                    json!({"exited": false})
                } else {
                    json!({"exited": true, "exitcode": 3, "out-data": "aGkK"})
                })
            }
            // Base64, as the protocol wants it.
            "guest-set-user-password" if arguments["password"] == "aHVudGVyMg==" => {
                assert_eq!(arguments["username"], "debian");
                Some(json!({}))
            }
            _ => None,
        }
    })
}

async fn ask(
    world: &World,
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
    let asked = tokio::time::timeout(DEADLINE, world.waifud.ask(order));
    let mut wire = asked.await.unwrap().unwrap().unwrap();
    wire.write_all(format!("{line}\n").as_bytes())
        .await
        .unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, wire.read_to_end(&mut answer));
    read.await.unwrap().unwrap();
    serde_json::from_slice(&answer).ok()
}

#[tokio::test]
async fn a_program_is_run_a_password_set_and_nothing_else_is_done() {
    let world = World::new();
    let instance = world.instance("web");
    world.waifud.put(instance.clone());
    world.start();
    world.until_ready(instance.id).await;
    world.hypervisor.set_agent(instance.id, Some(agent()));

    let text = |command: &GuestCommand| serde_json::to_string(command).unwrap();
    let exec = text(&GuestCommand::Exec(ExecRequest {
        command: ["sh", "-c", "exit 3"].map(str::to_owned).to_vec(),
        timeout_s: None,
    }));
    let expected = ExecResult {
        exit_code: 3,
        stdout_base64: "aGkK".to_owned(),
        ..ExecResult::default()
    };
    let answer = ask(&world, &instance, 201, &exec).await;
    assert_eq!(answer, Some(GuestAnswer::Exec(expected)));
    let passwd = text(&GuestCommand::SetPassword(SetPassword {
        user: "debian".to_owned(),
        password: Secret::new("hunter2".to_owned()),
    }));
    let answer = ask(&world, &instance, 202, &passwd).await;
    assert_eq!(answer, Some(GuestAnswer::PasswordSet));
    let other = r#"{"do": "guest-shutdown"}"#;
    assert_eq!(ask(&world, &instance, 203, other).await, None);

    world
        .hypervisor
        .set_agent(instance.id, Some(Arc::new(|_| None)));
    let Some(GuestAnswer::Refused(why)) = ask(&world, &instance, 204, &exec).await else {
        panic!("no agent, and no refusal");
    };
    assert_eq!(why.reason, RefusalReason::NoGuestAgent);
    world.delete(instance.id).await;
}
