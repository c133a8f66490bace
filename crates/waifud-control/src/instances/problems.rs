//! Problems with instances: their names, sizes, user-data and power, and changes that conflict.

use waifud_api::Problem;
use waifud_types::{ByteSize, Generation, Name};

const RESCUE_TEMPLATE: &str = "rescue.template";

/// The text is a name and would be taken for an id.
pub fn name_like_id() -> Problem {
    Problem::new(422, "invalid-name", "the name looks like an instance's id")
        .field("name")
        .hint("choose a name that is no UUID")
}

/// A living instance has it.
pub fn name_taken(name: &Name) -> Problem {
    Problem::new(
        409,
        "name-taken",
        format!("an instance named {name} exists"),
    )
    .field("name")
    .hint("choose another name, or delete that instance first and wait until it is gone")
}

/// The template is not known.
pub fn unknown_template(name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(422, "unknown-template", format!("there is no template {shown:?}"))
        .field("spec.template")
        .hint("waifuctl template list shows the templates, waifuctl template catalog what waifuctl template add NAME fetches")
}

/// The disk can't hold the image.
pub fn disk_too_small(size: ByteSize, template: &Name, least: ByteSize) -> Problem {
    let (size, least) = (size.exact(), least.exact());
    Problem::new(
        422,
        "disk-too-small",
        format!("disk {size} is smaller than template {template} needs ({least})"),
    )
    .field("spec.disks[0].size_bytes")
    .hint(format!("--disk {least} or more"))
}

/// Disks grow and never shrink.
pub fn disk_shrinks(is: ByteSize, wanted: ByteSize) -> Problem {
    let (is, wanted) = (is.exact(), wanted.exact());
    Problem::new(
        422,
        "disk-shrink-unsupported",
        format!("the disk has {is}; it can't shrink to {wanted} without losing data"),
    )
    .field("spec.disks[0].size_bytes")
    .hint(format!(
        "--disk {is} or more; for a smaller one, create another instance"
    ))
}

/// Its node has no room for what is asked for.
pub fn insufficient_capacity(field: &str, node: &Name, has: &str) -> Problem {
    Problem::new(409, "insufficient-capacity", format!("{node} {has}"))
        .field(field)
        .hint("ask for less, or delete or shrink something else on that node")
}

/// `force` belongs to a stop.
pub fn nothing_to_force() -> Problem {
    Problem::new(422, "force-without-stop", "force belongs to run = false")
        .field("force")
        .hint("to pull the plug, send run false too; to reboot by force, send reboot \"force\"")
}

/// What should be off is not rebooted.
pub fn reboot_of_what_is_off() -> Problem {
    Problem::new(
        409,
        "not-running",
        "it should be off, so it can't be rebooted",
    )
    .field("reboot")
    .hint("waifuctl start NAME")
}

/// User-data that cloud-init would not read.
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

/// Not a public key.
pub fn bad_ssh_key(index: usize, error: waifud_cloudinit::SshKeyError) -> Problem {
    Problem::new(422, "invalid-ssh-key", error.to_string())
        .field(format!("ssh_keys[{index}]"))
        .hint("give a line of a .pub file: ssh-ed25519 AAAA… you@host")
}

/// Somebody changed it in between.
pub fn stale(found: Generation) -> Problem {
    Problem::new(
        412,
        "stale-generation",
        format!("the instance changed in between and is at generation {found}"),
    )
    .field("If-Match")
    .hint("read it again, look at what changed, and send the new ETag")
}

/// A wish for another node than the one where it is.
pub fn placed_elsewhere(name: &Name, node: &Name) -> Problem {
    Problem::new(
        409,
        "already-placed",
        format!("{name} is on {node} already, and a change of its wishes does not move it"),
    )
    .field("spec.placement.node")
    .hint(format!("leave it at {node}, or null"))
}

/// Delete is refused.
pub fn protected(name: &Name) -> Problem {
    Problem::new(
        409,
        "protected",
        format!("instance {name} is protected against deletion"),
    )
    .field("spec.protected")
    .hint("waifuctl protect NAME --off, then delete it")
}

/// It is being destroyed.
pub fn deleting(name: &Name) -> Problem {
    Problem::new(409, "deleting", format!("instance {name} is being deleted"))
        .hint("create another one; nothing brings this one back")
}

/// It went while somebody waited for something else of it.
pub fn deleted_meanwhile(name: &Name) -> Problem {
    Problem::new(
        409,
        "deleted",
        format!("instance {name} was deleted meanwhile"),
    )
    .hint("its events tell by whom: GET /v1/events?object=ID")
}

/// The key was used for another request.
pub fn idempotency_mismatch() -> Problem {
    Problem::new(
        409,
        "idempotency-key-reused",
        "this Idempotency-Key was used for another request",
    )
    .field("Idempotency-Key")
    .hint("use a new key for every new request, the same key only to repeat one")
}

/// The template is not known.
pub fn rescue_unknown_template(name: &str) -> Problem {
    unknown_template(name).field(RESCUE_TEMPLATE)
}

/// Its node can't run it.
pub fn rescue_other_arch(template: &Name, arch: &str, wanted: &str) -> Problem {
    let text = format!("template {template} is for {arch}, the instance for {wanted}");
    Problem::new(422, "architecture-mismatch", text)
        .field(RESCUE_TEMPLATE)
        .hint(format!(
            "name a template for {wanted}: waifuctl template list"
        ))
}

/// Two disks with the same filesystems: which is mounted as root would be chance.
pub fn rescue_same_image(template: &Name) -> Problem {
    let text = format!(
        "the instance's own disk was made from the image of {template}: a system booted from it can't tell the two \
         disks apart, and might mount the broken one as its own"
    );
    Problem::new(422, "image-identical", text)
        .field(RESCUE_TEMPLATE)
        .hint("name another template, a small one does: waifuctl template list, waifuctl template catalog")
}

/// A rescue boots something.
pub fn rescue_with_stop() -> Problem {
    let text = "a rescue starts the instance, and this asks to stop it too";
    Problem::new(422, "contradiction", text)
        .field("run")
        .hint("leave run out, and stop it afterwards")
}
