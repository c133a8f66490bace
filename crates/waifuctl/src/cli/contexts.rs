//! Arguments of `login` and `context`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use waifud_api::ServerUrl;
use waifud_types::{Digest, Name};

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Address of waifud: https://HOST:PORT, or HOST for port 7373
    #[arg(value_name = "URL")]
    pub server: ServerUrl,
    /// A file with the token; - reads standard input [default: prompt]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Name of the context [default: the hostname in the URL]
    #[arg(long, value_name = "CONTEXT")]
    pub name: Option<Name>,
    /// A file with the certificate of waifud's CA, /var/lib/waifud/pki/ca.crt on its machine
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    pub ca: Option<PathBuf>,
    /// SHA-256 fingerprint of waifud's CA certificate; without it and --ca, you are asked to compare the fingerprint
    #[arg(long, value_name = "SHA256", value_parser = parse_fingerprint)]
    pub fingerprint: Option<Digest>,
}

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List contexts; * marks the current one
    #[command(visible_alias = "ls")]
    List,
    /// Make a context the current one; `local` is the waifud on this machine
    #[command(after_help = "Examples:\n  waifuctl context use home\n  waifuctl context use local")]
    Use(ContextNameArg),
    /// Remove a context and its copy of the token; the token stays valid until it is revoked
    #[command(visible_alias = "rm")]
    Remove(ContextNameArg),
}

#[derive(Debug, Args)]
pub struct ContextNameArg {
    /// Name of the context
    pub name: Name,
}

/// Accepts the formats of waifud's log and of openssl: with or without `sha256:` and colons.
fn parse_fingerprint(text: &str) -> Result<Digest, String> {
    let text = text.trim().to_ascii_lowercase();
    let bare = text
        .trim_start_matches("sha256:")
        .trim_start_matches("sha256 fingerprint=");
    bare.replace(':', "")
        .parse()
        .map_err(|_| "a fingerprint has 64 hexadecimal digits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_accepted_in_the_formats_of_other_programs() {
        let hex = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        let expected = hex.parse().unwrap();
        for text in [
            hex.clone(),
            format!("sha256:{hex}"),
            colons.clone(),
            format!("sha256 Fingerprint={colons}"),
        ] {
            assert_eq!(parse_fingerprint(&text), Ok(expected), "{text}");
        }
        assert!(parse_fingerprint("ab").is_err());
    }
}
