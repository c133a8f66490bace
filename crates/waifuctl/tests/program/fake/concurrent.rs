//! Changes that depend on the present state, while other clients change the instance, too.

use super::*;

const PATCH: &str = "PATCH /v1/instances/web";

/// The instance with these firewall rules, whose node has applied everything.
fn with_rules(generation: u64, ports: &[&str]) -> Value {
    let mut instance = instance("web", ID, json!({"observed_generation": generation}));
    let rules: Vec<_> = ports.iter().map(|port| rule(port)).collect();
    instance["generation"] = json!(generation);
    instance["spec"]["firewall"] = json!({"in": "deny", "out": "allow", "rules": rules});
    instance
}

fn rule(ports: &str) -> Value {
    json!({"direction": "in", "action": "allow", "protocol": "tcp", "ports": [ports], "peer": null})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_for_an_older_generation_is_made_again_with_what_others_have_changed() {
    let states = [
        with_rules(1, &[]),
        with_rules(2, &["80"]),
        with_rules(3, &["80", "22"]),
    ];
    let fake = Fake::start(states.clone(), &[]);
    let outdated = problem(412, "generation-changed", "the instance has changed");
    fake.script(PATCH, [outdated, (200, states[2].clone())]);
    fake.run("firewall allow web --in --port 22 --protocol tcp", 0)
        .await;
    let ports: Vec<Vec<String>> = fake
        .bodies(PATCH)
        .iter()
        .map(|body| {
            let rules = body["firewall"]["rules"].as_array().unwrap().iter();
            let ports = rules.map(|rule| rule["ports"][0].as_str().unwrap().to_owned());
            ports.collect()
        })
        .collect();
    assert_eq!(ports, [vec!["22"], vec!["80", "22"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_outdated_again_and_again_fails() {
    let fake = Fake::start([with_rules(1, &[])], &[]);
    let outdated = problem(412, "generation-changed", "the instance has changed");
    fake.script(PATCH, [outdated]);
    let (_, error) = fake
        .run("firewall allow web --in --port 22 --protocol tcp", 1)
        .await;
    assert!(error.contains("the instance has changed"), "{error}");
    assert_eq!(fake.count(PATCH), 5);
}
