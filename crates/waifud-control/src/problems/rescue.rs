//! What can be wrong with an order to rescue.

use waifud_api::Problem;
use waifud_types::Name;

const FIELD: &str = "rescue.template";

/// The template is not known.
pub fn unknown_template(name: &str) -> Problem {
    super::unknown_template(name).field(FIELD)
}

/// Its node can't run it.
pub fn other_arch(template: &Name, arch: &str, wanted: &str) -> Problem {
    let text = format!("template {template} is for {arch}, the instance for {wanted}");
    Problem::new(422, "architecture-mismatch", text)
        .field(FIELD)
        .hint(format!(
            "name a template for {wanted}: waifuctl template list"
        ))
}

/// Two disks with the same filesystems: which is mounted as root would be chance.
pub fn same_image(template: &Name) -> Problem {
    let text = format!(
        "the instance's own disk was made from the image of {template}: a system booted from it can't tell the two \
         disks apart, and might mount the broken one as its own"
    );
    Problem::new(422, "image-identical", text)
        .field(FIELD)
        .hint("name another template, a small one does: waifuctl template list, waifuctl template catalog")
}

/// A rescue boots something.
pub fn told_to_stop() -> Problem {
    let text = "a rescue starts the instance, and this asks to stop it too";
    Problem::new(422, "contradiction", text)
        .field("run")
        .hint("leave run out, and stop it afterwards")
}
