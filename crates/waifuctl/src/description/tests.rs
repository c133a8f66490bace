//! Descriptions, read and written.

use std::path::Path;

use proptest::prelude::*;
use waifud_api::{CreateInstance, CreateNic, Publish, SetFirewall};
use waifud_types::spec::{PlacementSpec, Protocol, RestartPolicy, SpreadSpec};
use waifud_types::{ByteSize, MacAddr, Secret};

use super::*;
use crate::failure::Failure;

fn requests(text: &str) -> Result<Vec<CreateInstance>, Failure> {
    let source = Source {
        text,
        base: Path::new("/nonexistent"),
    };
    parse("x.yaml", text)?
        .into_iter()
        .map(|document| request(document.description, source))
        .collect()
}

fn user_data(text: &str) -> String {
    let request = requests(text).unwrap().remove(0);
    request.user_data.unwrap().into_inner()
}

#[test]
fn every_field_of_a_description_is_converted_into_the_request() {
    let text = "name: web\ntemplate: debian-12\nlabels: {tier: web}\ncpus: 2\nmemory: 1.5G\n\
        disks: [{name: root, size: 20G, pool: fast}]\nnics: [{network: default, address: 10.144.1.50, mac: '52:54:00:12:34:56'}]\n\
        publish: ['8080:80', 53/udp]\n\
        ssh_keys: ['ssh-ed25519 AAAA me']\nuser_data: |\n  #!/bin/sh\n  true\nrun: false\nrestart: never\n\
        priority: -2\nprotected: true\n\
        placement: {node: alder, require: {disk: ssd}, spread: {group: web, strict: true}, near: db}\n";
    let request = requests(text).unwrap().remove(0);
    let json = serde_json::to_value(&request).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"name": "web", "template": "debian-12", "labels": {"tier": "web"}, "cpus": 2,
            "memory_bytes": 1_610_612_736, "disk_bytes": 21_474_836_480_u64, "pool": "fast",
            "user_data": "#!/bin/sh\ntrue\n", "ssh_keys": ["ssh-ed25519 AAAA me"], "run": false, "restart": "never",
            "priority": -2, "protected": true, "mac": "52:54:00:12:34:56",
            "nics": [{"network": null, "address": "10.144.1.50", "gateway": null, "allow_addresses": [], "mac": null}],
            "publish": [{"port": 53, "guest_port": 53, "protocol": "udp"}, {"port": 8080, "guest_port": 80, "protocol": "tcp"}],
            "placement": {"node": "alder", "require": {"disk": "ssd"}, "spread": {"group": "web", "strict": true}, "near": "db"}})
    );
    assert!(json.as_object().unwrap().values().all(|v| !v.is_null()));
}

#[test]
fn null_is_the_same_as_an_absent_field() {
    let nothing = "template: a\nssh_keys: []\n";
    let fields = [
        "name",
        "labels",
        "cpus",
        "memory",
        "disks",
        "nics",
        "publish",
        "user_data",
        "user_data_file",
        "cloud_config",
        "run",
        "restart",
        "priority",
        "protected",
        "placement",
    ];
    let expected = serde_json::to_value(requests(nothing).unwrap()).unwrap();
    for field in fields {
        for value in ["", " null", " ~"] {
            let text = format!("{nothing}{field}:{value}\n");
            let read = requests(&text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!(serde_json::to_value(read).unwrap(), expected, "{text}");
        }
    }
    let inner = "disks: [{name: , size: , pool: }]\nnics: [{network: , allow_addresses: }]\n\
        placement: {node: , require: , spread: {group: a, strict: }}\n";
    requests(&format!("{nothing}{inner}")).unwrap();
}

#[test]
fn an_error_names_the_problem_and_the_location() {
    for (text, what) in [
        ("template: a\ncpus: many\n", "u32"),
        ("template: a\nmemory: 2\n", "2G or 2M"),
        ("template: [a\n", "line"),
    ] {
        let said = format!("{:?}", requests(text).unwrap_err());
        let title = said.split("title: \"").nth(1).unwrap();
        let title = title.split("\", ").next().unwrap();
        assert!(
            title.starts_with("x.yaml, line ") && title.contains(what),
            "{title}"
        );
        assert!(
            title.len() > "x.yaml, line 1, column 1: ".len() + 5,
            "{title}"
        );
    }
}

#[test]
fn several_documents_are_several_instances() {
    let text = "template: a\nssh_keys: []\n---\ntemplate: b\nssh_keys: []\n";
    let templates: Vec<_> = requests(text)
        .unwrap()
        .into_iter()
        .map(|request| request.template)
        .collect();
    assert_eq!(templates, ["a", "b"]);
    assert_eq!(
        parse("f", text).unwrap().pop().unwrap().label,
        "f, document 2"
    );
}

#[test]
fn a_cloud_config_mapping_keeps_its_original_text() {
    let text = "template: a\nssh_keys: []\ncloud_config:\n  package_update: yes\n  write_files:\n    - path: /x\n      permissions: 0644\n      content: |\n        a\n\n        b\n\nname: web\n";
    assert_eq!(
        user_data(text),
        "#cloud-config\npackage_update: yes\nwrite_files:\n  - path: /x\n    permissions: 0644\n    content: |\n      a\n\n      b\n"
    );
    let second = format!("template: b\nssh_keys: []\n---\n{text}");
    let both = requests(&second).unwrap();
    assert!(
        both[1]
            .user_data
            .as_ref()
            .unwrap()
            .expose()
            .contains("permissions: 0644")
    );
    let flow = "template: a\nssh_keys: []\ncloud_config: {packages: [htop], x: 'yes'}\n";
    let rendered = user_data(flow);
    let (first, json) = rendered.split_once('\n').unwrap();
    assert_eq!(first, "#cloud-config");
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(value, serde_json::json!({"packages": ["htop"], "x": "yes"}));
}

#[test]
fn errors_name_the_location_and_a_fix() {
    for (text, code, place, hint) in [
        (
            "template: a\nmemroy: 2G\n",
            "unknown-field",
            "line 2, column 1",
            "did you mean memory?",
        ),
        (
            "template: a\ndisk: 2G\n",
            "unknown-field",
            "line 2",
            "disks: [{size: 20G}]",
        ),
        (
            "template: a\nplacement:\n  nod: x\n",
            "unknown-field",
            "line 3, column 3",
            "did you mean node?",
        ),
        (
            "template: a\nmemory: 2\n",
            "invalid-description",
            "line 2, column 9",
            "schema",
        ),
        (
            "template: a\ncpus: many\n",
            "invalid-description",
            "line 2",
            "schema",
        ),
        (
            "template: a\n---\ntemplate: b\nrun: perhaps\n",
            "invalid-description",
            "line 4",
            "schema",
        ),
        ("template: [a\n", "invalid-description", "line", "schema"),
        (
            "",
            "no-description",
            "x.yaml does not contain",
            "template: debian-12",
        ),
        (
            "name: x\nssh_keys: []\n",
            "no-template",
            "does not name a template",
            "waifuctl template list",
        ),
        (
            "template: a\nuser_data: x\ncloud_config: {a: b}\n",
            "user-data-twice",
            "given more than once",
            "keep one",
        ),
        (
            "template: a\ncloud_config: [a]\n",
            "invalid-cloud-config",
            "cloud_config is not a mapping",
            "indent its keys",
        ),
        (
            "template: a\nuser_data_file: none.yaml\n",
            "user-data-unreadable",
            "none.yaml",
            "check the path",
        ),
        (
            "template: a\ndisks: [{size: 1G}, {size: 1G}]\n",
            "too-many",
            "one of disks",
            "omit the others",
        ),
    ] {
        let failure = requests(text).unwrap_err();
        let problem = failure.problem();
        assert_eq!(problem.code, code, "{text}");
        assert!(problem.title.contains(place), "{text}: {problem:?}");
        let said = problem.hint.as_deref().unwrap_or_default();
        assert!(said.contains(hint), "{text}: {problem:?}");
        assert_eq!(failure.exit_code(), 1);
    }
}

#[test]
fn an_error_does_not_contain_user_data() {
    for text in [
        "template: a\nuser_data: {password: hunter2}\n",
        "template: a\nuser_data: [hunter2]\n",
        "template: a\nuser_data: |\n  hunter2\n bad\n",
    ] {
        assert!(
            !format!("{:?}", requests(text).unwrap_err()).contains("hunter2"),
            "{text}"
        );
    }
}

#[test]
fn absent_fields_of_a_description_are_not_compared() {
    let said = parse("f", "template: a\ncpus: 2\nssh_keys: []\n")
        .unwrap()
        .remove(0)
        .description;
    let wanted = requests("template: a\ncpus: 2\nssh_keys: []\n")
        .unwrap()
        .remove(0);
    let mut have = CreateInstance {
        memory_bytes: Some(ByteSize::gib(1)),
        run: Some(false),
        restart: RestartPolicy::Never,
        ..wanted.clone()
    };
    assert!(differs(&said, &wanted, &have).is_empty());
    have.cpus = Some(3);
    have.template = "b".to_owned();
    assert_eq!(differs(&said, &wanted, &have), ["template", "cpus"]);
}

#[test]
fn ports_and_peers_of_rules_are_compared_by_what_they_mean() {
    let with = |ports: &str, peer: &str| {
        let text = format!(
            "template: a\nssh_keys: []\nfirewall:\n  rules:\n  - {{direction: in, action: allow, protocol: tcp, ports: [{ports}], peer: {peer}}}\n"
        );
        requests(&text).unwrap().remove(0).firewall
    };
    let one = with("'80-80', '22'", "10.0.0.1/32");
    assert_eq!(one, with("'22', '80'", "10.0.0.1"));
    assert_eq!(one.rules[0].ports, ["22", "80"]);
    assert_eq!(
        with("http", "missing").rules[0].ports,
        ["http"],
        "waifud refuses it"
    );
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9 :#'\"\\\\\n\t-]{0,60}",
        "#cloud-config\n(( {0,4}[a-z#:\"'&*!|>%@`{}\\[\\],?-]{0,10} {0,2}\n){0,6})",
        "[ -~\n\t\r]{0,40}",
        any::<String>()
            .prop_map(|text| text.replace(|c: char| c.is_control() && !"\n\t\r".contains(c), "")),
        Just("yes".to_owned()),
        Just("0644".to_owned()),
        Just("~".to_owned()),
        Just("1e3".to_owned()),
        Just("---\na\n...\n".to_owned()),
    ]
}

prop_compose! {
    fn any_request()(
        name in proptest::option::of("[a-z][a-z0-9]{0,8}"),
        labels in proptest::collection::btree_map("[a-z./_-]{1,6}", text(), 0..3),
        cpus in 1_u32..255,
        (memory, disk) in (1_u64..1 << 44, 1_u64..1 << 44),
        user_data in proptest::option::of(text()),
        ssh_keys in proptest::collection::vec("ssh-ed25519 [A-Za-z0-9+/=]{4} [ -~]{0,8}z", 0..3),
        (run, restart, priority, protected) in (any::<bool>(), 0_usize..3, any::<i32>(), any::<bool>()),
        mac in any::<[u8; 3]>(),
        lan in any::<bool>(),
        node in proptest::option::of("[a-z]{1,5}"),
        require in proptest::collection::btree_map("[a-z]{1,6}", text(), 0..3),
        spread in proptest::option::of(("[a-z]{1,5}", any::<bool>())),
        near in proptest::option::of("[a-z]{1,5}"),
    ) -> CreateInstance {
        CreateInstance {
            name,
            labels,
            template: "debian-12".to_owned(),
            cpus: Some(cpus),
            memory_bytes: Some(ByteSize(memory)),
            disk_bytes: Some(ByteSize(disk)),
            pool: Some("main".to_owned()),
            user_data: user_data.map(Secret::new),
            ssh_keys: ssh_keys.into_iter().map(|key| key.trim().to_owned()).collect(),
            run: Some(run),
            restart: [RestartPolicy::Always, RestartPolicy::OnCrash, RestartPolicy::Never][restart],
            priority,
            protected,
            mac: (!lan).then(|| MacAddr::of_guest(mac)),
            nics: if lan { on_a_bridge(mac) } else { Vec::new() },
            publish: vec![Publish { port: 53, guest_port: Some(5353), protocol: Protocol::Udp }],
            firewall: if lan { SetFirewall::default() } else { closed() },
            placement: PlacementSpec {
                node: node.map(|node| node.parse().unwrap()),
                require,
                spread: spread.map(|(group, strict)| SpreadSpec { group: group.parse().unwrap(), strict }),
                near: near.map(|near| near.parse().unwrap()),
            },
        }
    }
}

fn closed() -> SetFirewall {
    serde_json::from_value(serde_json::json!({
        "in": "deny",
        "rules": [{"direction": "in", "action": "allow", "protocol": "tcp", "ports": ["22"], "peer": "label:a=b"}],
    }))
    .unwrap()
}

fn on_a_bridge(mac: [u8; 3]) -> Vec<CreateNic> {
    let lan = CreateNic {
        network: Some("lan".to_owned()),
        address: Some("192.168.1.50/24".to_owned()),
        gateway: Some("192.168.1.1".to_owned()),
        vlan: Some(20),
        allow_addresses: vec!["192.168.1.200/32".to_owned(), "fd00::/64".to_owned()],
        mac: Some(MacAddr::of_guest(mac)),
    };
    vec![lan, CreateNic::default()]
}

proptest! {
    #[test]
    fn a_printed_description_parses_to_the_same_description(wanted in any_request()) {
        let text = yaml(&from_request(wanted.clone())).unwrap();
        let twice = format!("{text}---\n{text}");
        prop_assert_eq!(requests(&text).unwrap(), vec![wanted.clone()], "{}", text);
        prop_assert_eq!(requests(&twice).unwrap(), vec![wanted.clone(), wanted], "{}", text);
    }
}

#[test]
fn user_data_of_several_lines_is_printed_as_a_block() {
    let description = Description {
        template: Some("a".to_owned()),
        user_data: Some("#cloud-config\npackages: [htop]\n".to_owned()),
        ..Description::default()
    };
    let text = yaml(&description).unwrap();
    assert!(
        text.contains("user_data: |\n  #cloud-config\n  packages: [htop]\n"),
        "{text}"
    );
}

const SCHEMA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/reference/instance.schema.json"
);

#[test]
fn the_schema_in_the_docs_is_up_to_date() {
    let generated = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("WAIFUD_BLESS").is_some() {
        std::fs::write(SCHEMA, &generated).unwrap();
    }
    assert!(
        std::fs::read_to_string(SCHEMA).unwrap_or_default() == generated,
        "docs/reference/instance.schema.json differs: WAIFUD_BLESS=1 cargo test -p waifuctl schema"
    );
}

#[test]
fn the_schema_is_standalone_and_has_exactly_the_known_fields() {
    let schema = schema();
    assert!(!schema.to_string().contains("#/components"));
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["required"], serde_json::json!(["template"]));
    let known: Vec<_> = schema["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let Err(failure) = parse("f", "zzzzzzzzzz: 1\n") else {
        panic!("an unknown field is taken");
    };
    let shown = format!("{failure:?}");
    for field in &known {
        assert!(
            shown.contains(field.as_str()),
            "{field} is not a field: {shown}"
        );
    }
    assert_eq!(known.len(), 18);
    for reference in schema.to_string().split("#/$defs/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schema["$defs"].get(name).is_some(), "{name} is not defined");
    }
}

#[test]
fn null_is_absent_for_the_parser_and_allowed_by_the_schema() {
    let schema = schema();
    let allows_null = |schema: &serde_json::Value| {
        let types = schema["type"].as_array().into_iter().flatten();
        let one_of = schema["oneOf"].as_array().into_iter().flatten();
        let mut types = types.chain(one_of.map(|part| &part["type"]));
        types.any(|kind| kind == "null")
    };
    let fields = schema["properties"].as_object().unwrap();
    for (name, field) in fields.iter().filter(|(name, _)| *name != "template") {
        let text = format!("template: a\n{name}:\n");
        let read = parse("f", &text).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let without = parse("f", "template: a\n").unwrap();
        assert_eq!(read, without, "{name}");
        assert!(allows_null(field), "{name}: {field}");
    }
    for (definition, field) in [
        ("NicDescription", "allow_addresses"),
        ("PlacementDescription", "require"),
        ("SpreadDescription", "strict"),
    ] {
        let field = &schema["$defs"][definition]["properties"][field];
        assert!(allows_null(field), "{definition}: {field}");
    }
}
