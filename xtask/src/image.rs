//! `cargo xtask image`: guest images built from Debian packages, cached by the digest of their recipe.

use anyhow::{Result, bail};
use waifud_images::Guest;

use crate::{packages, root};

#[derive(clap::Parser)]
pub struct Args {
    /// debian, debian-12-node (to install waifud on) or tiny
    guest: String,
    /// The Debian release: bookworm (12) or trixie (13)
    release: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let guest = parse(&args.guest, args.release.as_deref())?;
    packages::ensure("image")?;
    root::become_root("building an image")?;
    println!("{}", build(guest)?.qcow2.display());
    Ok(())
}

/// Builds `guest`, or finds it in the cache, and prints the steps on stderr. Needs root.
pub fn build(guest: Guest) -> Result<waifud_images::BuiltImage> {
    let image = waifud_images::build(guest, &waifud_images::default_cache_dir(), &|step| {
        eprintln!("  {guest}: {step}");
    })?;
    let from = if image.from_cache {
        "from the cache"
    } else {
        "built"
    };
    eprintln!(
        "  {guest}: {from} in {:.1} s, {} MiB",
        image.seconds,
        image.size_bytes >> 20
    );
    Ok(image)
}

fn parse(guest: &str, release: Option<&str>) -> Result<Guest> {
    match (guest, release) {
        ("debian", None | Some("bookworm" | "12")) => Ok(Guest::DebianBookworm),
        ("debian", Some("trixie" | "13")) => Ok(Guest::DebianTrixie),
        ("tiny", None) => Ok(Guest::Tiny),
        ("debian", Some(other)) => {
            bail!("unknown Debian release {other:?}: use bookworm or trixie")
        }
        ("tiny", Some(_)) => bail!("the image tiny has no releases: omit the second argument"),
        (name, None) => Ok(name.parse()?),
        (other, Some(_)) => bail!("unknown image {other:?}: use debian, debian-12-node or tiny"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_by_guest_and_release() {
        assert_eq!(parse("debian", None).unwrap(), Guest::DebianBookworm);
        assert_eq!(
            parse("debian", Some("trixie")).unwrap(),
            Guest::DebianTrixie
        );
        assert_eq!(parse("debian-13", None).unwrap(), Guest::DebianTrixie);
        assert_eq!(parse("tiny", None).unwrap(), Guest::Tiny);
        for (guest, release) in [
            ("debian", Some("sid")),
            ("tiny", Some("12")),
            ("arch", None),
            ("arch", Some("1")),
        ] {
            assert!(parse(guest, release).is_err(), "{guest} {release:?}");
        }
    }
}
