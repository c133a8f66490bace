//! What can be typed about who one is: tokens, logging in, contexts.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use waifud_api::ServerUrl;
use waifud_types::{Name, Role};

/// `token …`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; its secret is shown this once
    #[command(
        after_help = "Examples:\n  waifuctl token create laptop --role operator --expires 90d\n  waifuctl token create ci --role viewer --json | jq -r .secret\n\nRoles: a viewer sees everything but secrets; an operator also makes, changes and destroys; an admin also handles tokens and nodes."
    )]
    Create(TokenCreateArgs),
    /// List tokens, without secrets
    #[command(visible_alias = "ls")]
    List,
    /// Revoke a token: it is worth nothing from now on
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  waifuctl token revoke laptop"
    )]
    Revoke(TokenNameArg),
}

/// `token create`.
#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// Who or what uses it, such as laptop
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// viewer, operator or admin
    #[arg(long, value_parser = parse_role)]
    pub role: Role,
    /// It expires after this time, for example 12h or 30d [default: never]
    #[arg(long, value_name = "TIME", value_parser = crate::cli::parse_seconds)]
    pub expires: Option<u64>,
}

/// A token's name.
#[derive(Debug, Args)]
pub struct TokenNameArg {
    /// Its name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

/// `login`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Where waifud is: https://HOST:PORT, or HOST for port 7373
    #[arg(value_name = "URL")]
    pub server: ServerUrl,
    /// A file with the token; - reads standard input [default: asked for]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The context's name [default: the host's]
    #[arg(long, value_name = "CONTEXT")]
    pub name: Option<Name>,
    /// A file with the certificate of waifud's CA: its /var/lib/waifud/pki/ca.crt
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    pub ca: Option<PathBuf>,
    /// The SHA-256 of that certificate; without it and --ca, it is shown and asked about
    #[arg(long, value_name = "SHA256", value_parser = parse_fingerprint)]
    pub fingerprint: Option<waifud_types::Digest>,
}

/// `context …`.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List contexts; * marks the one in use
    #[command(visible_alias = "ls")]
    List,
    /// Use this context from now on; `local` is the socket of this machine
    #[command(after_help = "Examples:\n  waifuctl context use home\n  waifuctl context use local")]
    Use(ContextNameArg),
    /// Forget a context and its token; the token itself stays valid until it is revoked
    #[command(visible_alias = "rm")]
    Remove(ContextNameArg),
}

/// A context's name.
#[derive(Debug, Args)]
pub struct ContextNameArg {
    /// Its name
    pub name: Name,
}

fn parse_role(text: &str) -> Result<Role, String> {
    [Role::Viewer, Role::Operator, Role::Admin]
        .into_iter()
        .find(|role| role.as_str() == text)
        .ok_or_else(|| "a role is viewer, operator or admin".to_owned())
}

/// As waifud's log says it, and as openssl does: with or without `sha256:` and colons.
fn parse_fingerprint(text: &str) -> Result<waifud_types::Digest, String> {
    let text = text.trim().to_ascii_lowercase();
    let bare = text
        .trim_start_matches("sha256:")
        .trim_start_matches("sha256 fingerprint=");
    bare.replace(':', "")
        .parse()
        .map_err(|_| "a fingerprint is 64 hexadecimal digits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_taken_as_other_programs_print_them() {
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
