//! Problems with instances: their names, sizes, user-data and power, and changes that conflict.

use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction, HintKind, HintWhen};
use waifud_api::instance::PlacementVerdict;
use waifud_types::ownership::HandoverError;
use waifud_types::{ByteSize, Generation, Name};

const RESCUE_TEMPLATE: &str = "rescue.template";
const NEAR: &str = "spec.placement.near";
const DISK_SIZE: &str = "spec.disks[0].size_bytes";

fn disk_minimum(bytes: ByteSize) -> Hint {
    Hint::action(&HintAction::SetMinimum {
        field: DISK_SIZE.to_owned(),
        bytes,
    })
}

/// The name has the form of an id.
pub fn name_like_id() -> Problem {
    Problem::new(
        422,
        "invalid-name",
        "the name has the form of an instance id",
    )
    .field("name")
    .hint("choose a name that is not a UUID")
}

/// Another instance has the name.
pub fn name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "name-taken",
        format!("an instance named {name} already exists"),
    )
    .field("name")
    .hint("choose another name, or delete that instance and wait until the deletion has finished")
}

/// An instance is to be recreated that has its disks.
pub fn not_lost(name: &Name, node: &Name) -> Problem {
    Problem::new(
        409,
        "not-lost",
        format!("{name} has its disks: {node} is in contact with waifud"),
    )
    .field("name")
    .hint("only an instance whose node was removed can be recreated; to start with new disks, delete it and create it again")
}

/// An instance is to be recreated, and its node may come back with the disks.
pub fn maybe_not_lost(name: &Name, node: &Name) -> Problem {
    let on_node = |action| Hint::on(&action, HintKind::Node, node.as_str());
    Problem::new(
        409,
        "not-lost",
        format!("{name} has its disks on {node}, which is unreachable and may come back"),
    )
    .field("name")
    .hint(on_node(HintAction::SwitchOn))
    .hint(on_node(HintAction::RemoveForced))
}

/// An instance is to be recreated that never had disks.
pub fn not_placed_yet(name: &Name) -> Problem {
    Problem::new(
        409,
        "not-lost",
        format!("{name} waits for a node and has no disks yet"),
    )
    .field("name")
    .hint(Hint::on(
        &HintAction::Explain,
        HintKind::Instance,
        name.as_str(),
    ))
}

/// An instance is to be recreated, and a node has its disks.
pub fn copy_exists(name: &Name, node: &Name) -> Problem {
    let on = |action| Hint::on(&action, HintKind::Instance, name.as_str());
    Problem::new(
        409,
        "copy-exists",
        format!("{node} has {name} with its disks, unmanaged"),
    )
    .field("name")
    .hint(on(HintAction::Adopt { rename: false }))
    .hint(on(HintAction::Delete { unmanaged: true }).when(HintWhen::Otherwise))
}

/// An instance is to be recreated, and an administrator has not confirmed the restored database for every node.
pub fn recreate_unconfirmed(name: &Name, node: &Name) -> Problem {
    Problem::new(
        409,
        "restore-unconfirmed",
        format!(
            "{node} may have {name}: waifud's database was restored, and {node} is not confirmed"
        ),
    )
    .field("name")
    .hint(Hint::on(
        &HintAction::Confirm,
        HintKind::Node,
        node.as_str(),
    ))
}

/// The node that `field` of the request names does not exist.
pub fn unknown_node(field: &'static str, node: &Name) -> Problem {
    Problem::new(
        422,
        "unknown-node",
        format!("there is no node named {node}"),
    )
    .field(field)
    .hint(Hint::on_kind(&HintAction::List, HintKind::Node))
}

/// The roles of the nodes do not allow the change.
pub fn handover_refused(name: &Name, error: HandoverError) -> Problem {
    let hint = Hint::on(&HintAction::Explain, HintKind::Instance, name.as_str());
    no_handover(name, &error.to_string(), hint)
}

/// An administrator has not confirmed the restored database for every node.
pub fn handover_unconfirmed(name: &Name, node: &Name) -> Problem {
    let why = format!("waifud's database was restored, and node {node} is not confirmed");
    let hint = Hint::on(&HintAction::Confirm, HintKind::Node, node.as_str());
    no_handover(name, &why, hint)
}

/// A node has not reported what is on it since waifud's database was restored.
pub fn handover_unreported(name: &Name, node: &Name) -> Problem {
    let why =
        format!("node {node} has not reported its instances since waifud's database was restored");
    let hint = Hint::on(&HintAction::Show, HintKind::Node, node.as_str());
    no_handover(name, &why, hint)
}

/// The node has not applied the latest change of an instance whose guest is to keep running there.
pub fn handover_unobserved(name: &Name, node: &Name) -> Problem {
    let why = format!("node {node} has not reported the latest change of it");
    let hint = Hint::on(&HintAction::Explain, HintKind::Instance, name.as_str());
    no_handover(name, &why, hint)
}

/// The published ports are to be changed while the guest runs on a node that gives the instance up.
pub fn releasing(name: &Name, node: &Name) -> Problem {
    let title = format!("{name} still runs on {node}, which gives it up");
    Problem::new(409, "releasing", title)
        .field("publish")
        .hint("wait until the guest is off")
}

fn no_handover(name: &Name, why: &str, hint: Hint) -> Problem {
    let title = format!("cannot hand over {name}: {why}");
    Problem::new(409, "handover-refused", title).hint(hint)
}

/// The template does not exist.
pub fn unknown_template(name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(
        422,
        "unknown-template",
        format!("there is no template {shown:?}"),
    )
    .field("spec.template")
    .hint(Hint::on_kind(&HintAction::List, HintKind::Template))
    .hint(Hint::on_kind(&HintAction::List, HintKind::Catalog))
    .hint(Hint::on_kind(&HintAction::Download, HintKind::Template))
}

/// The instance that another one should be near does not exist.
pub fn near_unknown(near: &Name) -> Problem {
    Problem::new(
        422,
        "unknown-instance",
        format!("there is no instance {near}"),
    )
    .field(NEAR)
    .hint("create that instance first, or omit the preference")
    .hint(Hint::on_kind(&HintAction::List, HintKind::Instance))
}

/// An instance should be near itself.
pub fn near_itself(name: &Name) -> Problem {
    Problem::new(
        422,
        "near-itself",
        format!("{name} cannot be placed near itself"),
    )
    .field(NEAR)
    .hint("name another instance, or omit the preference")
}

/// The disk is smaller than the image.
pub fn disk_too_small(size: ByteSize, template: &Name, least: ByteSize) -> Problem {
    let (size, needs) = (size.exact(), least.exact());
    Problem::new(
        422,
        "disk-too-small",
        format!(
            "a disk of {size} is too small for template {template}, which needs at least {needs}"
        ),
    )
    .field(DISK_SIZE)
    .hint(disk_minimum(least))
}

/// A disk cannot be shrunk.
pub fn disk_shrinks(is: ByteSize, wanted: ByteSize) -> Problem {
    let (has, wanted) = (is.exact(), wanted.exact());
    Problem::new(
        422,
        "disk-shrink-unsupported",
        format!("the disk has {has}; shrinking it to {wanted} is not supported, because data would be lost"),
    )
    .field(DISK_SIZE)
    .hint(disk_minimum(is))
    .hint("for a smaller disk, create another instance")
}

/// The instance's node does not have enough capacity.
pub fn insufficient_capacity(field: &str, node: &Name, has: &str) -> Problem {
    Problem::new(409, "insufficient-capacity", format!("{node} {has}"))
        .field(field)
        .hint("request less, or delete or shrink another instance on that node")
}

/// `force` is only valid with a stop.
pub fn force_without_stop() -> Problem {
    Problem::new(
        422,
        "force-without-stop",
        "force is only valid together with run = false",
    )
    .field("force")
    .hint("to force a power-off, also send run = false; to force a reboot, send reboot = \"force\"")
}

/// An instance that should be off cannot be rebooted.
pub fn reboot_while_off(name: &Name) -> Problem {
    Problem::new(
        409,
        "not-running",
        "the instance is stopped: start it instead of rebooting it",
    )
    .field("reboot")
    .hint(Hint::on(
        &HintAction::Start,
        HintKind::Instance,
        name.as_str(),
    ))
}

/// cloud-init would not accept the user-data.
pub fn bad_user_data(error: &waifud_cloudinit::UserDataError) -> Problem {
    use waifud_cloudinit::UserDataError as E;
    let code = match error {
        E::TooLong { .. } => "user-data-too-large",
        E::Binary { .. } => "user-data-binary",
        E::UnknownKind { .. } => "unsupported-user-data",
        _ => "user-data-invalid",
    };
    Problem::new(422, code, error.to_string())
        .field("user_data")
        .hint(error.hint())
}

/// An SSH public key is invalid.
pub fn bad_ssh_key(index: usize, error: waifud_cloudinit::SshKeyError) -> Problem {
    Problem::new(422, "invalid-ssh-key", error.to_string())
        .field(format!("ssh_keys[{index}]"))
        .hint("use a line of a .pub file: ssh-ed25519 AAAA… you@host")
}

/// The instance has changed since the client read it.
pub fn stale(found: Generation) -> Problem {
    Problem::new(
        412,
        "stale-generation",
        format!("the instance has changed and is now at generation {found}"),
    )
    .field("If-Match")
    .hint("read the instance again, check the changes, and send the new ETag")
}

/// The change requests another node than the instance's current one.
pub fn placed_elsewhere(name: &Name, node: &Name) -> Problem {
    Problem::new(
        409,
        "already-placed",
        format!("{name} is already placed on {node}, and changing its placement would not move it"),
    )
    .field("spec.placement.node")
    .hint(format!("use {node} or null"))
}

/// The instance is protected against deletion.
pub fn protected(name: &Name) -> Problem {
    Problem::new(
        409,
        "protected",
        format!("instance {name} is protected against deletion"),
    )
    .field("spec.protected")
    .hint(Hint::on(
        &HintAction::Unprotect,
        HintKind::Instance,
        name.as_str(),
    ))
}

/// The instance is being deleted.
pub fn deleting(name: &Name) -> Problem {
    Problem::new(409, "deleting", format!("instance {name} is being deleted"))
        .hint("a deletion cannot be undone; create another instance")
}

/// The instance was deleted while a request waited for it.
pub fn deleted_meanwhile(name: &Name) -> Problem {
    Problem::new(
        409,
        "deleted",
        format!("instance {name} was deleted while the request was waiting"),
    )
    .hint("GET /v1/events?object=ID shows who deleted it")
}

/// The idempotency key was already used for another request.
pub fn idempotency_mismatch() -> Problem {
    Problem::new(
        409,
        "idempotency-key-reused",
        "this Idempotency-Key was already used for a different request",
    )
    .field("Idempotency-Key")
    .hint("use a new key for each new request, and the same key only to repeat a request")
}

/// The rescue template does not exist.
pub fn rescue_unknown_template(name: &str) -> Problem {
    unknown_template(name).field(RESCUE_TEMPLATE)
}

/// The rescue template is for another architecture.
pub fn rescue_other_arch(template: &Name, arch: &str, wanted: &str) -> Problem {
    let text = format!("template {template} is for {arch}, but the instance is for {wanted}");
    Problem::new(422, "architecture-mismatch", text)
        .field(RESCUE_TEMPLATE)
        .hint(format!("choose a template for {wanted}"))
        .hint(Hint::on_kind(&HintAction::List, HintKind::Template))
}

/// Both disks would have the same filesystem UUIDs, so the rescue system could mount either as its root.
pub fn rescue_image_identical(template: &Name) -> Problem {
    let text = format!(
        "the instance's disk was created from the same image as {template}: the rescue system could not distinguish the two \
         disks, and could mount the broken one as its root"
    );
    Problem::new(422, "image-identical", text)
        .field(RESCUE_TEMPLATE)
        .hint("choose another template, for example a small one")
        .hint(Hint::on_kind(&HintAction::List, HintKind::Template))
        .hint(Hint::on_kind(&HintAction::List, HintKind::Catalog))
}

/// A rescue cannot be combined with a stop.
pub fn rescue_with_stop() -> Problem {
    let text = "the request both starts a rescue and stops the instance";
    Problem::new(422, "contradiction", text)
        .field("run")
        .hint("omit run; you can stop the instance afterwards")
}

fn on_instance(action: &HintAction, name: &Name) -> Hint {
    Hint::on(action, HintKind::Instance, name.as_str())
}

fn cannot_move(name: &Name, why: &str) -> Problem {
    Problem::new(409, "cannot-move", format!("cannot move {name}: {why}")).field("name")
}

/// The instance is being moved, and the request cannot be carried out meanwhile.
pub fn is_moving(name: &Name, to: &Name) -> Problem {
    Problem::new(409, "moving", format!("{name} is being moved to {to}"))
        .field("name")
        .hint(on_instance(&HintAction::CancelMove, name))
        .hint("wait until the move is over")
}

/// The move of the instance is canceled, and the new node has not confirmed it yet.
pub fn is_canceling(name: &Name, to: &Name) -> Problem {
    Problem::new(
        409,
        "moving",
        format!("the move of {name} to {to} is canceled, and {to} has not confirmed this yet"),
    )
    .field("name")
    .hint(format!(
        "wait until {to} is in contact with waifud and has deleted what it received"
    ))
    .hint(Hint::on(&HintAction::Show, HintKind::Node, to.as_str()))
}

/// A move is to be canceled, and there is none.
pub fn not_moving(name: &Name) -> Problem {
    Problem::new(409, "not-moving", format!("{name} is not being moved"))
        .field("name")
        .hint(on_instance(&HintAction::Show, name))
}

/// A move is to be canceled, and the new node owns the instance.
pub fn already_moved(name: &Name, to: &Name) -> Problem {
    Problem::new(
        409,
        "already-moved",
        format!("{name} was handed over to {to}, which has its disks now"),
    )
    .field("name")
    .hint("wait until the move is over, and move it back")
}

/// The disks of the instance to move are lost.
pub fn lost(name: &Name) -> Problem {
    cannot_move(name, "the node with its disks was removed")
        .hint(on_instance(&HintAction::Recreate, name))
}

/// The instance to move has no node yet.
pub fn not_placed_to_move(name: &Name) -> Problem {
    cannot_move(name, "it waits for a node").hint(on_instance(&HintAction::Explain, name))
}

/// The instance to move may not have disks yet.
pub fn unprepared_to_move(name: &Name, node: &Name) -> Problem {
    cannot_move(name, &format!("{node} still prepares it"))
        .hint("wait until it has been started, and try again")
        .hint(on_instance(&HintAction::Explain, name))
}

/// The instance to move runs a rescue system.
pub fn rescue_to_move(name: &Name) -> Problem {
    cannot_move(name, "it is in rescue").hint("end the rescue first")
}

/// The instance to move was released by its node.
pub fn is_released(name: &Name, node: &Name) -> Problem {
    cannot_move(name, &format!("{node} was told to release it"))
        .hint(on_instance(&HintAction::Explain, name))
}

/// The instance to move is on the requested node.
pub fn already_there(name: &Name, node: &Name) -> Problem {
    Problem::new(409, "already-there", format!("{name} is on {node} already"))
        .field("to")
        .hint("name another node, or none to let waifud choose")
}

/// The requested node still has something of the instance.
pub fn still_has_part(name: &Name, node: &Name) -> Problem {
    cannot_move(name, &format!("{node} still deletes an earlier copy of it"))
        .field("to")
        .hint("wait until the copy is deleted, and try again")
}

/// The instance has to stay on its node.
pub fn pinned(name: &Name, node: &Name) -> Problem {
    cannot_move(name, &format!("it is pinned to {node}"))
        .field("to")
        .hint(format!(
            "move it to a node of your choice: waifuctl move {name} --to NODE"
        ))
}

/// The instance would get another address.
pub fn new_address_needed(name: &Name, node: &Name) -> Problem {
    Problem::new(
        409,
        "new-address-needed",
        format!("{name} would get another address on {node}: the fabric carries no routes to single addresses, or an agent is of an earlier version"),
    )
    .field("new_address")
    .hint(on_instance(
        &HintAction::AllowNewAddress {
            to: node.to_string(),
        },
        name,
    ))
}

/// The new node has no address for the instance.
pub fn no_address_to_move(name: &Name, node: &Name, why: &str) -> Problem {
    cannot_move(name, &format!("{node} has no address for it: {why}"))
        .hint(on_instance(&HintAction::CancelMove, name))
}

/// No node, or not the requested one, can run the instance.
pub fn no_node_to_move_to(
    name: &Name,
    to: Option<&Name>,
    verdicts: &[PlacementVerdict],
) -> Problem {
    let wanted = to.and_then(|to| verdicts.iter().find(|verdict| verdict.node == *to));
    let why = match (to, wanted) {
        (Some(to), Some(verdict)) => format!("{to}: {}", verdict.reason),
        (Some(to), None) => format!("{to} cannot run it"),
        (None, _) if verdicts.is_empty() => "there is no other node for it".to_owned(),
        (None, _) => {
            let reasons: Vec<_> = verdicts
                .iter()
                .map(|verdict| format!("{}: {}", verdict.node, verdict.reason))
                .collect();
            format!("no other node can run it ({})", reasons.join("; "))
        }
    };
    cannot_move(name, &why)
        .field("to")
        .hint(on_instance(&HintAction::Show, name))
}
