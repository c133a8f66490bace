//! Guests in a namespace, the node's end of the tunnel in another, and the program on the node.

use std::{fs, os::unix::fs::DirBuilderExt, time::Duration};

use waifud_types::InstanceId;

use crate::{
    kit::{World, client, guest_address},
    process::{Home, crash, serve, tunnel},
};

/// Far below the 19.5 s for which a plain WireGuard does not answer after its other end was restarted.
const PROMPT: Duration = Duration::from_secs(10);

fn read(world: &World, number: u8) -> String {
    let path = "/openstack/latest/user_data";
    client::read(world, number, path, PROMPT)
}

#[test]
fn guests_are_answered_by_the_program_before_and_right_after_its_crash() {
    let Some(world) = World::new(3) else { return };
    let home = Home::new("127.0.0.1:51821");
    fs::DirBuilder::new()
        .mode(0o700)
        .create(home.state_dir())
        .unwrap();
    let key = home.state_dir().join("wireguard.key");
    fs::write(key, world.server_key.to_base64()).unwrap();
    let home = std::sync::Arc::new(home);
    let start = || {
        let home = std::sync::Arc::clone(&home);
        world.node.run(move || async move { home.start().await.0 })
    };
    let child = start();
    let _node = world.start_node();
    let (node, client) = (world.node_key.public_key(), home.client());
    world.node.run(move || async move {
        client.put_tunnel(&tunnel(node)).await.unwrap();
        for number in 0..2 {
            let words = format!("words for {number}");
            serve(
                &client,
                InstanceId::generate(),
                guest_address(number),
                &words,
            )
            .await;
        }
    });
    let check = || {
        for number in 0..2 {
            let answer = read(&world, number);
            assert!(answer.contains(&format!("words for {number}")), "{answer}");
        }
        assert!(read(&world, 2).starts_with("HTTP/1.1 404"));
    };
    check();
    world.node.run(move || crash(child));
    let again = start();
    check();
    world.node.run(move || crash(again));
}
