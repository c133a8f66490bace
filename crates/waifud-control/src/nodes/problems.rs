//! Problems with nodes: joining, reports, removal, unmanaged objects.

use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction, HintKind, HintWhen};
use waifud_types::{InstanceId, Name};

fn show(node: &Name) -> Hint {
    Hint::on(&HintAction::Show, HintKind::Node, node.as_str())
}

/// The node has instances that are not deleted.
pub fn has_instances(node: &Name, shown: &[Name], count: usize) -> Problem {
    let listed = crate::problems::list_names(shown, count as u64);
    let problem = Problem::new(
        409,
        "node-in-use",
        format!("{node} still has instances: {listed}"),
    )
    .field("name")
    .hint(Hint::on(
        &HintAction::Drain { new_address: false },
        HintKind::Node,
        node.as_str(),
    ))
    .hint("or delete them; if the node is off, it is enough to request the deletions")
    .hint(Hint::on(
        &HintAction::RemoveForced,
        HintKind::Node,
        node.as_str(),
    ));
    shown
        .iter()
        .fold(problem, |problem, name| problem.hint(Hint::delete(name)))
}

/// A forced removal without the confirmation that the machine is off.
pub fn off_not_confirmed() -> Problem {
    Problem::new(
        409,
        "off-not-confirmed",
        "a forced removal needs the confirmation that the machine is off",
    )
    .field("confirm_off")
    .hint(
        "make sure that the machine is off and will not come back, then set confirm_off (--confirm-off); if it runs, its \
         guests continue to run there, and recreated ones run twice",
    )
}

/// A forced removal of a node that is reachable.
pub fn still_reachable(node: &Name) -> Problem {
    Problem::new(
        409,
        "node-reachable",
        format!("{node} is not off: it is in contact with waifud"),
    )
    .field("force")
    .hint("delete its instances and remove it without force; or switch it off and wait until it is unreachable")
    .hint(show(node))
}

/// A drain is to be canceled, and there is none.
pub fn not_draining(node: &Name) -> Problem {
    Problem::new(409, "not-draining", format!("{node} is not being drained"))
        .field("name")
        .hint(show(node))
}

/// The only node is to be drained.
pub fn only_node(node: &Name) -> Problem {
    Problem::new(
        409,
        "only-node",
        format!("{node} is the only node, so its instances cannot move"),
    )
    .field("name")
    .hint(Hint::action(&HintAction::AddNode))
    .hint("or stop its instances")
}

/// A node is to be drained, and instances would get other addresses.
pub fn new_addresses_needed(node: &Name, shown: &[Name], count: usize) -> Problem {
    let listed = crate::problems::list_names(shown, count as u64);
    Problem::new(
        409,
        "new-address-needed",
        format!("on another node than {node}, these instances would get another address: {listed}"),
    )
    .field("new_address")
    .hint(Hint::on(
        &HintAction::Drain { new_address: true },
        HintKind::Node,
        node.as_str(),
    ))
}

/// The instances of an unreachable node cannot leave it.
pub fn drain_waits(node: &Name) -> Problem {
    Problem::new(
        409,
        "node-unreachable",
        format!("{node} is unreachable; its instances move when it is back"),
    )
    .field("name")
    .hint(Hint::on(
        &HintAction::SwitchOn,
        HintKind::Node,
        node.as_str(),
    ))
}

/// A value that a node reported exceeds its bound.
pub fn out_of_bounds(field: &str, why: &str) -> Problem {
    Problem::new(422, "out-of-bounds", format!("{field}: {why}"))
        .field(field)
        .hint("check that waifud-agentd on the node has the same version as waifud")
}

/// A node reports more changes than waifud records for one node.
pub fn too_many_changes() -> Problem {
    Problem::new(
        429,
        "too-many-changes",
        "this node reports changes faster than waifud can record them",
    )
    .hint("wait a few seconds and send the report again")
}

/// A hello or a report arrives after a newer message of the same node.
pub fn outdated_report() -> Problem {
    Problem::new(
        503,
        "outdated-report",
        "this node has already sent a newer report",
    )
    .hint("send the present status in another report")
}

/// The node watches or reports before it has said hello to this process.
pub fn hello_needed() -> Problem {
    Problem::new(
        503,
        "hello-needed",
        "this node has not said hello since waifud was started",
    )
    .hint("POST /v1/agent/hello first")
}

/// Another node has the name (rename).
pub fn name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "name-taken",
        format!("a node named {name} already exists"),
    )
    .field("name")
    .hint("choose another name")
    .hint(Hint::on_kind(&HintAction::List, HintKind::Node))
}

/// The node is reachable and has unmanaged objects.
pub fn has_unmanaged(node: &Name, count: u32) -> Problem {
    Problem::new(
        409,
        "node-in-use",
        format!("{node} has {count} unmanaged objects"),
    )
    .field("name")
    .hint("adopt or delete them, or switch the node off first")
    .hint(show(node))
}

/// The machine is a copy of the node, which is in contact itself.
pub fn is_copy(node: &Name) -> Problem {
    Problem::new(
        409,
        "duplicate-node",
        format!("this machine is a copy of node {node}, which is in contact from another machine"),
    )
    .hint(format!(
        "if its disk was copied, switch this machine off, or let it join as a node of its own: waifud-agentd join --again \
         --name NAME; if it replaces {node}, switch the other machine off"
    ))
}

/// The node is not registered.
pub fn unknown_node() -> Problem {
    Problem::new(404, "unknown-node", "this node is not registered").hint("send hello first")
}

/// The certificate is not the current one of the node, whose name is known unless it was removed.
pub fn certificate_not_current(node: Option<&Name>) -> Problem {
    let join = match node {
        Some(node) => Hint::on(&HintAction::CreateJoinToken, HintKind::Node, node.as_str()),
        None => Hint::on_kind(&HintAction::CreateJoinToken, HintKind::Node),
    };
    Problem::new(
        403,
        "not-admitted",
        "this certificate is not the node's current one",
    )
    .hint("either the node has joined again with another key, or waifud's database was replaced; join again with a token for the node's name")
    .hint(join)
}

/// The join token is not valid.
pub fn join_token(why: &str) -> Problem {
    Problem::new(
        401,
        "invalid-join-token",
        format!("the join token is not valid: {why}"),
    )
    .field("token")
    .hint(Hint::on_kind(&HintAction::CreateJoinToken, HintKind::Node))
}

/// The certificate signing request is invalid.
pub fn bad_csr(error: &waifud_pki::PkiError) -> Problem {
    Problem::new(422, "invalid-csr", error.to_string())
        .field("csr")
        .hint("waifud-agentd join creates a valid request")
}

/// The join token is for another node name.
pub fn join_token_for_other_name(name: &Name) -> Problem {
    Problem::new(
        409,
        "node-mismatch",
        format!("the join token is only valid for node {name}"),
    )
    .field("name")
    .hint("pass --name to waifud-agentd join, or create a token for this node's name")
}

/// Other machines cannot reach waifud.
pub fn not_reachable() -> Problem {
    Problem::new(
        409,
        "not-reachable",
        "waifud listens on this machine only, so other machines cannot join",
    )
    .field("install")
    .hint(
        "set `listen` in /etc/waifud/waifud.toml, for example listen = [\"0.0.0.0:7373\"], then run: \
         sudo systemctl restart waifud",
    )
}

/// waifud does not have the files of a package.
pub fn not_packaged() -> Problem {
    Problem::new(
        409,
        "not-packaged",
        "this waifud was not installed from a package, so it cannot make one for other machines",
    )
    .field("install")
    .hint("install waifud on the new machine by hand, then run there: waifud-agentd join --token-file -")
    .hint(Hint::on_kind(&HintAction::CreateJoinToken, HintKind::Node))
}

/// A node of that name has already joined.
pub fn join_name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "name-taken",
        format!("a node named {name} has already joined"),
    )
    .field("name")
    .hint(
        Hint::on(&HintAction::CreateJoinToken, HintKind::Node, name.as_str())
            .when(HintWhen::SameMachine),
    )
    .hint("otherwise pass another name with --name")
}

/// Another node registered under the name first.
pub fn node_name_taken(name: &Name) -> Problem {
    Problem::new(409, "name-taken", format!("another node is named {name}"))
        .field("name")
        .hint("set another `node` name in agentd.toml")
}

/// No subnet is free.
pub fn no_subnet(range: &str) -> Problem {
    Problem::new(
        409,
        "no-subnet",
        format!("every /24 in {range} is either used by a node or overlaps a route of this node"),
    )
    .hint("set another guest_range in waifud's configuration")
}

/// The instance is managed already.
pub fn already_managed(name: &Name) -> Problem {
    Problem::new(
        409,
        "already-managed",
        format!("instance {name} is already managed"),
    )
    .hint(Hint::on(
        &HintAction::Show,
        HintKind::Instance,
        name.as_str(),
    ))
}

/// The node has a role for the instance (owner, releasing or receiving), so its copy is not unmanaged.
pub fn copy_is_managed(name: &Name, node: &Name) -> Problem {
    Problem::new(
        409,
        "already-managed",
        format!("instance {name} is managed by waifud, so its copy on {node} is not unmanaged"),
    )
    .hint(Hint::on(
        &HintAction::Show,
        HintKind::Instance,
        name.as_str(),
    ))
}

/// Another node has a newer copy of the instance.
pub fn newer_copy(name: &Name, node: &Name) -> Problem {
    Problem::new(
        409,
        "newer-copy",
        format!("{node} has a newer copy of {name}, and the guest may be running there"),
    )
    .hint("adopt or delete that copy first")
    .hint(show(node))
}

/// The node's agent does not know the request.
pub fn agent_too_old(node: &Name) -> Problem {
    Problem::new(
        409,
        "agent-too-old",
        format!("the agent on {node} is too old for this request"),
    )
    .hint(format!("upgrade waifud-agentd on {node}"))
}

/// The node has no record of the instance.
pub fn not_adoptable(name: &Name) -> Problem {
    Problem::new(
        409,
        "not-adoptable",
        format!("{name} cannot be adopted: its node does not have its spec and its user-data"),
    )
    .hint("copy the data that you need from its disks on the node before you delete it")
    .hint(Hint::on(
        &HintAction::Delete { unmanaged: true },
        HintKind::Instance,
        name.as_str(),
    ))
}

/// The node's record of the instance is not valid.
pub fn invalid_record(name: &Name, part: &str) -> Problem {
    Problem::new(
        409,
        "not-adoptable",
        format!("{name} cannot be adopted: its record on the node is invalid ({part})"),
    )
    .hint("the record was changed after waifud sent it: check the node")
}

/// Another instance has the name of the unmanaged one.
pub fn adopted_name_taken(name: &Name, id: InstanceId) -> Problem {
    Problem::new(
        409,
        "name-taken",
        format!("an instance named {name} already exists"),
    )
    .field("name")
    .hint(Hint::on(
        &HintAction::Adopt { rename: true },
        HintKind::Instance,
        id.to_string(),
    ))
}

/// Another instance uses an address or another property of the unmanaged one.
pub fn adopt_conflict(name: &Name, what: &str) -> Problem {
    Problem::new(
        409,
        "adopt-conflict",
        format!("{name} cannot be adopted: another instance uses {what}"),
    )
    .hint("delete the other instance first, or leave this one unmanaged")
}

/// Several unmanaged instances have the name.
pub fn ambiguous_unmanaged(name: &str, node: &Name) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(
        409,
        "ambiguous-name",
        format!("several unmanaged instances are named {shown:?}"),
    )
    .field("instance")
    .hint("use the instance's id, which the node's details list")
    .hint(show(node))
}

/// A network of the unmanaged instance does not exist, or has another bridge.
pub fn adopt_network_mismatch(
    name: &Name,
    id: InstanceId,
    network: &Name,
    bridge: Option<&str>,
    known: bool,
) -> Problem {
    let problem = |what: &str| {
        let bridge = bridge.unwrap_or("unknown");
        Problem::new(
            409,
            "adopt-conflict",
            format!("{name} cannot be adopted: its network {network} (bridge {bridge}) {what}"),
        )
    };
    if known {
        return problem("now has another bridge")
            .hint(
                Hint::on(
                    &HintAction::Delete { unmanaged: false },
                    HintKind::Network,
                    network.as_str(),
                )
                .when(HintWhen::Unused),
            )
            .hint("otherwise leave the instance unmanaged");
    }
    let add = HintAction::AddNetwork {
        bridge: bridge.map(str::to_owned),
    };
    let adopt = HintAction::Adopt { rename: false };
    problem("does not exist")
        .hint(Hint::on(&add, HintKind::Network, network.as_str()))
        .hint(Hint::on(&adopt, HintKind::Instance, id.to_string()))
}
