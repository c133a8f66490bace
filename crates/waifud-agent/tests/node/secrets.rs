//! The agent's log contains no user-data, keys or passwords, at any level.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use waifud_api::guest_command::{GuestCommand, SetPassword};
use waifud_hypervisor::HypervisorError;
use waifud_hypervisor::fake::Op;
use waifud_kit::testing::captured_log::CapturedLog;
use waifud_types::Secret;
use waifud_types::template::Datasource;

use crate::datasource::bundle;
use crate::guest_command::{agent, ask, exec};
use crate::test_node::TestNode;

#[tokio::test]
async fn the_log_of_a_life_cycle_contains_no_user_data_keys_or_passwords() {
    let log = CapturedLog::begin();
    let node = TestNode::started();
    let mut keys = Vec::new();
    // One guest reads its documents from metadatad, the other from a disk; each is edited once.
    for datasource in [Datasource::Openstack, Datasource::Cidata] {
        let mut instance = node.instance(datasource.as_str());
        instance.datasource = datasource;
        instance.bundle = bundle(&node, instance.id, "#!/bin/sh\n# correct-horse\n");
        keys.push(instance.bundle.key.expose().clone());
        let failure = HypervisorError::Other {
            operation: "do that",
            message: "it fails in this test".to_owned(),
        };
        node.hypervisor.fail_next(Op::EnsureDefined, failure);
        let id = node.run(instance).await;
        node.restart().await;
        let edited = bundle(&node, id, "#!/bin/sh\n# battery-staple\n");
        keys.push(edited.key.expose().clone());
        node.waifud.edit(id, |instance| instance.bundle = edited);
        let generation = node.waifud.instance(id).unwrap().generation;
        node.until_status(id, "edited", |s| s.observed_generation == generation)
            .await;

        node.hypervisor.set_agent(id, Some(agent()));
        let instance = node.waifud.instance(id).unwrap();
        let number = u8::try_from(keys.len()).unwrap();
        let password = GuestCommand::SetPassword(SetPassword {
            user: "debian".to_owned(),
            password: Secret::new("hunter2".to_owned()),
        });
        let input = exec(&["cat"], Some(b"tr0ub4dor"));
        for (number, command) in [(number, password), (number + 100, input)] {
            let line = serde_json::to_string(&command).unwrap();
            let answer = ask(&node, &instance, number, &line).await;
            assert!(answer.is_some(), "{command:?}");
        }
        node.delete(id).await;
    }
    let log = log.text();
    assert!(log.contains("it fails in this test"), "not captured: {log}");
    let texts = ["correct-horse", "battery-staple", "hunter2", "tr0ub4dor"];
    let texts = texts.map(str::to_owned).into_iter();
    let encoded = texts.clone().map(|text| STANDARD.encode(text));
    for secret in texts.chain(encoded).chain(keys) {
        assert!(!log.contains(&secret), "the log contains {secret}");
    }
}
