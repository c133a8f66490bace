//! Every problem that a request can meet, in one place: codes are for scripts and stay as they are.

pub mod disk_space;
pub mod images;
pub mod lan;
pub mod limits;
pub mod network;
pub mod nodes;
pub mod rescue;
pub mod unmanaged;

pub use disk_space::{NO_SPACE, no_space, with_disk_space};
pub use images::{
    bad_image, digest_mismatch, image_in_use, image_missing, image_too_large, no_source,
    no_such_byte, too_many_downloads, upload_broken,
};
pub use limits::{database_trouble, token_ended, token_holds_too_many};

use waifud_api::Problem;
use waifud_types::{ByteSize, Digest, Generation, Name, Role};

/// No such thing.
pub fn not_found(kind: &str, name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(404, "not-found", format!("there is no {kind} {shown:?}")).hint(match kind {
        "instance" => "waifuctl list shows what there is".to_owned(),
        "download" => "waifuctl template list shows what is on its way, too".to_owned(),
        "template" | "node" | "network" | "token" => {
            format!("waifuctl {kind} list shows what there is")
        }
        _ => format!("list what there is: GET /v1/{kind}s"),
    })
}

/// The text is no name.
pub fn bad_name(field: &str, error: &waifud_types::name::NameError) -> Problem {
    Problem::new(422, "invalid-name", error.to_string())
        .field(field)
        .hint("use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit: web-1")
}

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

/// A nic has it.
pub fn mac_taken() -> Problem {
    Problem::new(409, "mac-taken", "another instance has that MAC address")
        .field("mac")
        .hint("leave mac out and one is chosen")
}

/// The template is not known.
pub fn unknown_template(name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(422, "unknown-template", format!("there is no template {shown:?}"))
        .field("spec.template")
        .hint("waifuctl template list shows the templates, waifuctl template catalog what waifuctl template add NAME fetches")
}

/// The catalog does not have it.
pub fn not_in_catalog(name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(
        422,
        "not-in-catalog",
        format!("there is no {shown:?} in the catalog"),
    )
    .field("catalog")
    .hint("waifuctl template catalog shows what is in it; others: --url and --checksum, or --file")
}

/// Nothing would prove the bytes.
pub fn no_checksum() -> Problem {
    Problem::new(
        422,
        "no-checksum",
        "an image needs its publisher's checksum",
    )
    .field("checksum")
    .hint("--checksum sha256:… or --checksums-url URL of the publisher's list; --insecure-no-checksum does without")
}

/// The template is on its way from elsewhere.
pub fn download_running(name: &Name) -> Problem {
    Problem::new(
        409,
        "download-running",
        format!("template {name} is being downloaded from another source"),
    )
    .field("name")
    .hint(format!(
        "waifuctl template delete {name} ends that; or choose another name"
    ))
}

/// The image was not uploaded.
pub fn unknown_image(digest: Digest) -> Problem {
    Problem::new(422, "unknown-image", format!("there is no image {digest}"))
        .field("image")
        .hint("upload it first: PUT /v1/images/DIGEST")
}

/// A number out of its range.
pub fn out_of_range(
    field: &str,
    what: &str,
    least: impl std::fmt::Display,
    most: impl std::fmt::Display,
) -> Problem {
    Problem::new(422, "out-of-range", format!("{what} is out of range"))
        .field(field)
        .hint(format!("from {least} to {most}"))
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

/// A label that can't be stored or searched for.
pub fn bad_label(key: &str) -> Problem {
    let shown: String = key.chars().take(80).collect();
    Problem::new(422, "invalid-label", format!("label {shown:?} can't be used"))
        .field("labels")
        .hint("keys: 1 to 63 of a-z, A-Z, 0-9 and -_./; values: up to 255 characters without control characters")
}

/// Too many of something.
pub fn too_many(field: &str, most: usize) -> Problem {
    Problem::new(422, "too-many", format!("more than {most} are not taken"))
        .field(field)
        .hint("send fewer")
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

/// The history is gone.
pub fn revision_gone(oldest: waifud_types::Revision) -> Problem {
    Problem::new(
        410,
        "revision-gone",
        "the history after that revision was trimmed, or belongs to another life of the database",
    )
    .field("since")
    .detail(oldest.to_string())
    .hint(format!(
        "read the lists again and go on from their revision; the history begins at {oldest}"
    ))
}

/// A query parameter that can't be understood.
pub fn bad_query(field: &str, why: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new(400, "invalid-query", why)
        .field(field)
        .hint(hint)
}

/// A header that can't be understood.
pub fn bad_header(field: &str, why: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new(400, "invalid-header", why)
        .field(field)
        .hint(hint)
}

/// Who asks may not.
pub fn forbidden(hint: &str) -> Problem {
    Problem::new(403, "forbidden", "you may not do that").hint(hint)
}

/// Nobody said who asks.
pub fn no_credential() -> Problem {
    Problem::new(401, "missing-credential", "this request does not say who asks").hint(
        "send a token as Authorization: Bearer …; an administrator makes one with waifuctl token create NAME --role ROLE",
    )
}

/// What was sent to prove it proves nothing. One answer for every reason: guessers learn nothing.
pub fn bad_credential() -> Problem {
    Problem::new(401, "invalid-credential", "the token is unknown, revoked or expired").hint(
        "an administrator sees the tokens with waifuctl token list, and makes one with waifuctl token create NAME --role ROLE",
    )
}

/// Too many wrong tokens came from there.
pub fn too_many_attempts() -> Problem {
    Problem::new(
        429,
        "too-many-attempts",
        "too many wrong tokens came from this address",
    )
    .hint("wait as long as Retry-After says, then send a token that is valid")
}

/// The role does not suffice.
pub fn role_too_low(who: &str, own: Role, needed: Role) -> Problem {
    Problem::new(403, "insufficient-role", format!("this needs the role {needed}; {who} is {own}"))
        .hint(format!("ask an administrator, or use a token with the role {needed}: waifuctl token create NAME --role {needed}"))
}

/// A node's certificate where people ask.
pub fn for_people() -> Problem {
    forbidden("client certificates are for agents, under /v1/agent; people send a token")
}

/// A person where nodes report.
pub fn for_agents() -> Problem {
    forbidden("this route is for agents, which prove themselves with a client certificate")
}

/// A token has the name.
pub fn token_name_taken(name: &Name) -> Problem {
    Problem::new(409, "name-taken", format!("a token named {name} exists"))
        .field("name")
        .hint("choose another name, or revoke that one first: waifuctl token revoke NAME")
}

/// It has no console, no screen and no ports while it is off.
pub fn not_running(name: &Name, state: waifud_types::InstanceState) -> Problem {
    Problem::new(
        409,
        "instance-not-running",
        format!("instance {name} is {state}: there is nothing to connect to"),
    )
    .hint(format!(
        "waifuctl start {name}; waifuctl why {name} tells more"
    ))
}

/// Its node's agent is not heard of.
pub fn node_unreachable() -> Problem {
    Problem::new(
        504,
        "node-unreachable",
        "the instance's node is not connected to waifud",
    )
    .hint("waifuctl node list shows since when; guests go on without waifud")
}

/// The node was asked and nobody came.
pub fn agent_did_not_come() -> Problem {
    Problem::new(
        504,
        "agent-timeout",
        "the instance's node was asked for the stream and did not open it in time",
    )
    .hint("try again; the log of waifud-agentd on the node says more")
}

/// The node could not open the stream.
pub fn stream_refused(
    kind: waifud_api::stream::StreamKind,
    refusal: &waifud_api::stream::StreamRefusal,
) -> Problem {
    use waifud_api::stream::RefusalReason as R;
    let (status, code, hint) = match refusal.reason {
        R::NotHere => (
            409,
            "instance-not-on-node",
            "it may be on its way: try again in a moment",
        ),
        R::NotRunning => (409, "instance-not-running", "waifuctl start NAME"),
        R::NoAddress => (
            409,
            "no-address",
            "waifuctl ip NAME shows whether it has an address",
        ),
        R::NothingListens => (
            409,
            "connection-refused",
            "is the service running in the guest, and not on the guest's loopback only? waifuctl console NAME looks inside",
        ),
        R::NoAnswer => (
            409,
            "guest-unreachable",
            "is the guest up, and does its firewall let the port in? waifuctl console NAME looks inside",
        ),
        R::NotTheGuest => (
            409,
            "guest-identity-mismatch",
            "a stream leads to the guest and to no other machine; waifuctl why NAME, or choose another address",
        ),
        R::NoGuestAgent => (
            409,
            "no-guest-agent",
            "a guest that is booting has it a little later: waifuctl wait NAME --for ready; one that lacks it: install \
             qemu-guest-agent in it, through waifuctl ssh or console",
        ),
        R::GuestRefused => (
            409,
            "guest-refused",
            "is there such a user, and /bin/sh for exec, in the guest? some distributions disable guest-exec: allow it in the configuration of qemu-guest-agent",
        ),
        R::NoLog => (404, "no-log", "it comes with the first start"),
        R::TooMany => (429, "too-many-streams", "close some streams first"),
        R::Other => (
            502,
            "stream-failed",
            "the log of waifud-agentd on the node says more",
        ),
    };
    let shown: String = refusal
        .message
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    Problem::new(
        status,
        code,
        format!("the node could not open the {}: {shown}", kind.as_str()),
    )
    .hint(hint)
}

/// Too many at once.
pub fn too_many_streams(most: usize) -> Problem {
    Problem::new(429, "too-many-streams", "too many streams are open")
        .hint(format!("close some; at most {most} lead to one instance"))
}

/// The request does not ask to become a stream.
pub fn upgrade_required() -> Problem {
    Problem::new(
        426,
        "upgrade-required",
        "this path answers only requests that ask for an upgrade of the connection",
    )
    .hint("use waifuctl, or a WebSocket client over HTTP/1.1")
}

/// Used, expired, another node's, or never made.
pub fn no_such_stream() -> Problem {
    Problem::new(404, "stream-not-found", "nobody waits for that stream")
        .hint("each id is good once, for 30 seconds, for one node")
}

/// The node is not known here.
pub fn unknown_node() -> Problem {
    Problem::new(404, "unknown-node", "this node is not known").hint("say hello first")
}

/// The certificate is not the one that the node is known by.
pub fn node_not_admitted() -> Problem {
    Problem::new(
        403,
        "not-admitted",
        "this certificate is not the one that the node is known by",
    )
    .hint("the node has joined anew with another key, or waifud's database is another one; join again: waifuctl node token create --name NAME")
}

/// The join token lets nobody in.
pub fn join_token(why: &str) -> Problem {
    Problem::new(
        401,
        "invalid-join-token",
        format!("the join token can't be used: {why}"),
    )
    .field("token")
    .hint("make a new one: waifuctl node token create")
}

/// The request for a certificate is none.
pub fn bad_csr(error: &waifud_pki::PkiError) -> Problem {
    Problem::new(422, "invalid-csr", error.to_string())
        .field("csr")
        .hint("waifud-agentd join makes one")
}

/// The token is for another node.
pub fn join_other_name(name: &Name) -> Problem {
    Problem::new(
        409,
        "node-mismatch",
        format!("the join token is for node {name} only"),
    )
    .field("name")
    .hint("set `node` in agentd.toml, or make a token for this node's name")
}

/// A node of that name is in already.
pub fn join_name_taken(name: &Name) -> Problem {
    Problem::new(409, "name-taken", format!("a node named {name} is in already"))
        .field("name")
        .hint(format!(
            "if this is that machine: waifuctl node token create --name {name}; else set `node` in agentd.toml"
        ))
}

/// Another node has the name.
pub fn node_name_taken(name: &Name) -> Problem {
    Problem::new(409, "name-taken", format!("another node is named {name}"))
        .field("name")
        .hint("give this machine another name in its agent's configuration")
}

/// No subnet is left.
pub fn no_subnet(range: &str) -> Problem {
    Problem::new(
        409,
        "no-subnet",
        format!("no /24 of {range} is free of other nodes and of this node's routes"),
    )
    .hint("choose another guest_range in waifud's configuration")
}
