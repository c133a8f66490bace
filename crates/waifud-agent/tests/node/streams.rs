//! Streams that an agent opens or refuses.

#![expect(clippy::expect_used, reason = "tests say what went wrong")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use waifud_api::agent::AgentInstance;
use waifud_api::stream::{RefusalReason, StreamId, StreamKind, StreamOrder, StreamRefusal};
use waifud_hypervisor::Device;
use waifud_types::{Epoch, InstanceId, TapName};

use crate::test_node::{TestNode, guest_with};

const DEADLINE: Duration = Duration::from_mins(1);

fn order(instance: &AgentInstance, kind: StreamKind) -> StreamOrder {
    static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    StreamOrder {
        id: StreamId::from_bytes([number; 32]),
        instance: instance.id,
        epoch: instance.epoch,
        kind,
    }
}

async fn ask(node: &TestNode, order: StreamOrder) -> Result<DuplexStream, StreamRefusal> {
    tokio::time::timeout(DEADLINE, node.waifud.request_stream(order))
        .await
        .expect("the agent neither came nor refused")
        .expect("the agent dropped the order")
}

async fn refused(node: &TestNode, order: StreamOrder) -> RefusalReason {
    ask(node, order).await.expect_err("it was opened").reason
}

/// A ready guest whose console and screen send their name and echo.
async fn running(node: &TestNode) -> AgentInstance {
    node.hypervisor
        .set_devices(Some(Arc::new(|_, device, wire| {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(wire);
                let greeting: &[u8] = match device {
                    Device::Console => b"login: ",
                    Device::Screen => b"RFB 003.008\n",
                };
                writer.write_all(greeting).await.unwrap();
                let _ended = tokio::io::copy(&mut reader, &mut writer).await;
            });
        })));
    let instance = node.instance("web");
    node.waifud.put(instance.clone());
    node.start();
    node.until_ready(instance.id).await;
    instance
}

async fn says(wire: &mut DuplexStream, text: &str) {
    let mut buffer = vec![0; text.len()];
    tokio::time::timeout(DEADLINE, wire.read_exact(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer), text);
}

#[tokio::test]
async fn console_and_screen_belong_to_the_instance_and_the_newest_console_wins() {
    let node = TestNode::new();
    let instance = running(&node).await;
    let mut screen = ask(&node, order(&instance, StreamKind::Screen))
        .await
        .unwrap();
    says(&mut screen, "RFB 003.008\n").await;

    let mut first = ask(&node, order(&instance, StreamKind::Console))
        .await
        .unwrap();
    says(&mut first, "login: ").await;
    first.write_all(b"root").await.unwrap();
    says(&mut first, "root").await;
    let mut second = ask(&node, order(&instance, StreamKind::Console))
        .await
        .unwrap();
    says(&mut second, "login: ").await;
    let mut notice = String::new();
    first.read_to_string(&mut notice).await.unwrap();
    assert!(notice.contains("another client"), "{notice}");
    second.write_all(b"x").await.unwrap();
    says(&mut second, "x").await;
}

#[tokio::test]
async fn other_instances_other_copies_and_stopped_ones_are_refused() {
    let node = TestNode::new();
    let instance = running(&node).await;
    let mut stranger = order(&instance, StreamKind::Console);
    stranger.instance = InstanceId::generate();
    assert_eq!(refused(&node, stranger).await, RefusalReason::NotHere);
    let mut another = order(&instance, StreamKind::Console);
    another.epoch = Epoch(instance.epoch.0 + 1);
    assert_eq!(refused(&node, another).await, RefusalReason::NotHere);

    node.stop(instance.id).await;
    for kind in [StreamKind::Console, StreamKind::Screen] {
        let wanted = order(&instance, kind);
        assert_eq!(refused(&node, wanted).await, RefusalReason::NotRunning);
    }
    node.delete(instance.id).await;
    let gone = order(&instance, StreamKind::Console);
    assert_eq!(refused(&node, gone).await, RefusalReason::NotHere);
}

#[tokio::test]
async fn ssh_and_forward_reach_the_instances_own_address_and_nothing_else() {
    let node = TestNode::new();
    let instance = running(&node).await;
    let address = instance.spec.nics[0].address.unwrap();
    let closed = order(&instance, StreamKind::Ssh);
    assert_eq!(refused(&node, closed).await, RefusalReason::NothingListens);
    node.dialer.listen(address, 22);
    node.dialer.listen(address, 8080);
    let forward = StreamKind::Forward { port: 8080 };
    for kind in [StreamKind::Ssh, forward] {
        let mut wire = ask(&node, order(&instance, kind)).await.unwrap();
        wire.write_all(b"hello").await.unwrap();
        says(&mut wire, "hello").await;
        // The end of the input reaches the guest, whose own end comes back.
        wire.shutdown().await.unwrap();
        let mut rest = Vec::new();
        wire.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    }
    let zero = order(&instance, StreamKind::Forward { port: 0 });
    assert_eq!(refused(&node, zero).await, RefusalReason::NothingListens);
    let before = node.dialer.dialed();
    assert_eq!(before, [(address, 22), (address, 22), (address, 8080)]);

    for odd in ["127.0.0.1", "169.254.1.1", "10.144.1.1", "0.0.0.0"] {
        let odd = odd.parse().unwrap();
        node.dialer.listen(odd, 22);
        node.waifud.edit(instance.id, |instance| {
            instance.spec.nics[0].address = Some(odd);
        });
        node.until("the order to be refused", async || {
            refused(&node, order(&instance, StreamKind::Ssh)).await == RefusalReason::NoAddress
        })
        .await;
    }
    assert_eq!(
        node.dialer.dialed(),
        before,
        "an address that is no guest's was dialed"
    );
}

#[tokio::test]
async fn an_address_observed_at_the_guests_port_is_tried() {
    let node = TestNode::new();
    running(&node).await;
    let mut instance = node.instance("lan");
    let nic = &mut instance.spec.nics[0];
    nic.network = "lan".parse().unwrap();
    nic.address = None;
    let bridges = &mut instance.bridges;
    bridges.insert("lan".parse().unwrap(), "br0".to_owned());
    node.run(instance.clone()).await;
    let unknown = order(&instance, StreamKind::Ssh);
    assert_eq!(refused(&node, unknown).await, RefusalReason::NoAddress);

    let observed = [192, 168, 1, 40].into();
    node.network
        .learn(&TapName::of(instance.id, 0), IpAddr::V4(observed));
    node.dialer.listen(observed, 22);
    node.until_status(instance.id, "the observed address", |status| {
        let mut addresses = status.addresses.iter();
        addresses.any(|seen| seen.address == IpAddr::V4(observed))
    })
    .await;
    let mut wire = ask(&node, order(&instance, StreamKind::Ssh)).await.unwrap();
    wire.write_all(b"hello").await.unwrap();
    says(&mut wire, "hello").await;
    assert_eq!(node.dialer.dialed(), [(observed, 22)]);
}

#[tokio::test]
async fn an_address_of_another_machine_is_refused() {
    let node = TestNode::new();
    let instance = running(&node).await;
    let address = instance.spec.nics[0].address.unwrap();
    node.dialer.listen(address, 22);
    node.dialer
        .belongs_to(address, waifud_types::MacAddr::of_guest([9, 9, 9]));
    let wanted = order(&instance, StreamKind::Ssh);
    let refusal = ask(&node, wanted).await.expect_err("it was opened");
    assert_eq!(refusal.reason, RefusalReason::NotTheGuest);
    assert!(
        refusal.message.contains("belongs to another machine"),
        "{}",
        refusal.message
    );
}

#[tokio::test]
async fn a_failed_stream_resets_the_guests_connection_and_one_that_ends_does_not() {
    let node = TestNode::new();
    let instance = running(&node).await;
    node.dialer
        .listen(instance.spec.nics[0].address.unwrap(), 22);
    let mut ending = ask(&node, order(&instance, StreamKind::Ssh)).await.unwrap();
    ending.write_all(b"hello").await.unwrap();
    ending.shutdown().await.unwrap();
    says(&mut ending, "hello").await;
    let mut rest = Vec::new();
    ending.read_to_end(&mut rest).await.unwrap();
    let closed = async || node.dialer.open() == 0;
    node.until("the connection to be closed", closed).await;
    assert_eq!(node.dialer.resets(), 0);
    let mut breaking = ask(&node, order(&instance, StreamKind::Ssh)).await.unwrap();
    breaking.write_all(b"hello").await.unwrap();
    // The echo has no reader.
    drop(breaking);
    node.until("the connection to be closed", closed).await;
    assert_eq!(node.dialer.resets(), 1);
}

#[tokio::test]
async fn logs_are_read_from_the_node_and_from_the_guest() {
    let node = TestNode::new();
    let instance = running(&node).await;
    let log = |lines| {
        order(
            &instance,
            StreamKind::ConsoleLog {
                lines,
                follow: false,
            },
        )
    };
    assert_eq!(refused(&node, log(1)).await, RefusalReason::NoLog);
    let path = node
        .settings
        .state_dir
        .join(format!("instances/{}/console.log", instance.id));
    std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
    let mut text = String::new();
    let mut wire = ask(&node, log(2)).await.unwrap();
    wire.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "two\nthree\n");

    let cloud = || order(&instance, StreamKind::CloudInitLog { lines: 1 });
    assert_eq!(refused(&node, cloud()).await, RefusalReason::NoLog);
    let files = guest_with(&[("/var/log/cloud-init-output.log", "early\nlate\n")]);
    node.hypervisor.set_agent(instance.id, Some(files));
    text.clear();
    let mut wire = ask(&node, cloud()).await.unwrap();
    wire.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "late\n");
    node.hypervisor
        .set_agent(instance.id, Some(Arc::new(|_| None)));
    assert_eq!(refused(&node, cloud()).await, RefusalReason::NoGuestAgent);
}
