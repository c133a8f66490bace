//! Joining of nodes: join tokens, and the request that a node sends before it has a certificate.
//!
//! `POST /v1/agent/join` [`JoinRequest`] is answered with [`Joined`]. A token admits one key. The same key can repeat
//! the request until the token expires, since an answer can be lost.
//!
//! `GET /v1/agent/install` returns a shell script that installs waifud on a machine and lets it join, and
//! `GET /v1/agent/packages/{kind}` the package that the script installs. Both require [`JOIN_TOKEN_HEADER`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Digest, Name, NodeId, Secret, Timestamp};

/// The prefix of every token.
const PREFIX: &str = "wfj_";
/// The version of the token format.
const VERSION: u8 = 1;
/// Maximum length of a token.
const TEXT_MAX: usize = 4096;
/// The header with [`JoinRequest::secret`]: waifud checks it before it reads the body of a join request.
pub const JOIN_TOKEN_HEADER: &str = "waifud-join-token";
/// The path of the script that installs waifud on a machine and lets it join.
pub const INSTALL_PATH: &str = "/v1/agent/install";
/// The path of the packages for that script; the last segment is a [`PackageKind`].
pub const PACKAGES_PATH: &str = "/v1/agent/packages";
/// Default lifetime of a token: one hour.
pub const DEFAULT_LIFETIME_S: u64 = 3600;
/// Maximum lifetime of a token: 30 days.
pub const LIFETIME_MAX_S: u64 = 30 * 86_400;

/// The contents of a token. Its text is `wfj_` and, in base64url without padding, one byte 1, the SHA-256 of waifud's
/// CA certificate, 32 random bytes, and waifud's URLs, separated by newlines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinToken {
    /// Fingerprint of the CA that issued waifud's certificate.
    pub ca: Digest,
    /// The secret that admits the node.
    pub secret: Secret<[u8; 32]>,
    /// Addresses of waifud, `https://HOST:PORT`.
    pub addresses: Vec<String>,
}

/// The text is not a join token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid join token: `waifuctl node token create` prints one, which begins with wfj_")]
pub struct InvalidJoinToken;

impl JoinToken {
    /// The token as text.
    pub fn to_text(&self) -> Secret<String> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(self.ca.bytes());
        bytes.extend_from_slice(self.secret.expose());
        bytes.extend_from_slice(self.addresses.join("\n").as_bytes());
        Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Parses a token; surrounding whitespace is ignored.
    pub fn parse(text: &str) -> Result<Self, InvalidJoinToken> {
        let text = text.trim();
        let coded = text.strip_prefix(PREFIX).ok_or(InvalidJoinToken)?;
        if text.len() > TEXT_MAX {
            return Err(InvalidJoinToken);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(coded)
            .map_err(|_| InvalidJoinToken)?;
        let (version, rest) = bytes.split_first().ok_or(InvalidJoinToken)?;
        let (ca, rest) = rest.split_first_chunk::<32>().ok_or(InvalidJoinToken)?;
        let (secret, rest) = rest.split_first_chunk::<32>().ok_or(InvalidJoinToken)?;
        let addresses = std::str::from_utf8(rest).map_err(|_| InvalidJoinToken)?;
        if *version != VERSION {
            return Err(InvalidJoinToken);
        }
        Ok(Self {
            ca: Digest::from_bytes(*ca),
            secret: Secret::new(*secret),
            addresses: addresses.lines().map(str::to_owned).collect(),
        })
    }
}

/// A request of a node to join.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinRequest {
    /// The token's secret: 32 bytes in base64url without padding.
    pub secret: Secret<String>,
    /// The certificate signing request, in PEM. Only its key is used, which must be an ECDSA key on P-256.
    pub csr: String,
    /// The requested name of the node; must be the name in the token if it has one.
    pub name: Name,
}

impl JoinRequest {
    /// With the secret as the wire has it.
    pub fn new(secret: &[u8; 32], csr: String, name: Name) -> Self {
        Self {
            secret: secret_text(secret),
            csr,
            name,
        }
    }

    /// The secret's bytes.
    pub fn secret(&self) -> Result<[u8; 32], InvalidJoinToken> {
        secret_bytes(self.secret.expose())
    }
}

/// Encodes a secret as [`JoinRequest::secret`] and [`JOIN_TOKEN_HEADER`] have it.
pub fn secret_text(secret: &[u8; 32]) -> Secret<String> {
    Secret::new(URL_SAFE_NO_PAD.encode(secret))
}

/// Decodes a secret.
pub fn secret_bytes(text: &str) -> Result<[u8; 32], InvalidJoinToken> {
    URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(InvalidJoinToken)
}

/// The answer to a join request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Joined {
    /// Id of the node, which is also in its certificate.
    pub node: NodeId,
    /// Name of the node.
    pub name: Name,
    /// Certificate of the node, in PEM.
    pub certificate: String,
    /// Certificate of the CA, in PEM. The node verifies it against the fingerprint in the token.
    pub ca: String,
    /// Addresses of waifud.
    pub addresses: Vec<String>,
}

/// A request for a join token.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateJoinToken {
    /// Admit only the node of this name, including a node that has joined before and lost its key.
    pub name: Option<Name>,
    /// Lifetime in seconds: one hour by default, at most 30 days.
    pub expires_in_s: Option<u64>,
    /// Return the commands that install waifud on the machine and let it join. Refused if other machines cannot reach
    /// waifud, or if waifud does not have the files of a package.
    pub install: bool,
}

/// The kinds of packages that waifud makes of its own installation for new nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PackageKind {
    /// A package for Debian and its derivatives.
    Deb,
    /// A tarball with the same files, relative to `/`.
    Tarball,
}

impl PackageKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Deb, Self::Tarball];

    /// The last segment of its path.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deb => "deb",
            Self::Tarball => "tarball",
        }
    }

    /// The kind with this path.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Commands for the machine that should become a node, for a POSIX shell. They contain the secret of the token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstallCommands {
    /// Installs waifud and joins.
    pub run: Secret<String>,
    /// Saves the script in a file instead, to be read first: one command per item.
    pub read_first: Vec<Secret<String>>,
}

/// State of a join token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JoinTokenState {
    /// The token can still admit a node.
    Unused,
    /// A node has joined with it; only the key of that node can still use it.
    Spent,
    /// The token has expired.
    Expired,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

impl JoinTokenState {
    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unused => "unused",
            Self::Spent => "spent",
            Self::Expired => "expired",
            Self::Other => "other",
        }
    }
}

/// A join token without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenInfo {
    /// Id of the token, for `revoke`.
    pub id: String,
    /// The node name that the token is limited to; null if it is not limited.
    pub name: Option<String>,
    /// State of the token.
    pub state: JoinTokenState,
    /// The user that created it.
    pub created_by: String,
    /// Creation time.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Expiry time.
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
    /// The node that joined with it; null before.
    pub node: Option<String>,
}

/// A join token with its text, which is shown only once and not stored.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedJoinToken {
    /// The token without its text.
    #[serde(flatten)]
    pub info: JoinTokenInfo,
    /// The text of the token, for `waifud-agentd join --token TEXT` on the node.
    pub token: Secret<String>,
    /// The commands for the new machine; null unless the request asked for them.
    #[serde(default)]
    pub install: Option<InstallCommands>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_round_trips_as_text(ca: [u8; 32], secret: [u8; 32], hosts in proptest::collection::vec("[a-z]{1,20}", 0..5)) {
            let token = JoinToken {
                ca: Digest::from_bytes(ca),
                secret: Secret::new(secret),
                addresses: hosts.iter().map(|host| format!("https://{host}:7373")).collect(),
            };
            let text = token.to_text();
            prop_assert_eq!(JoinToken::parse(&format!(" {}\n", text.expose())), Ok(token.clone()));
            let shown = format!("{token:?}");
            prop_assert!(!shown.contains(text.expose()));
        }

        #[test]
        fn any_other_text_is_refused(text in ".{0,200}", short in proptest::collection::vec(any::<u8>(), 0..65), version in 0..u8::MAX) {
            let coded = |bytes: &[u8]| format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
            // Without the prefix, with an invalid character, too short, and of another version.
            let version = if version < VERSION { version } else { version + 1 };
            let other = [&[version][..], &[7; 80]].concat();
            for bad in [text.clone(), format!("{PREFIX}{text}!"), coded(&short), coded(&other)] {
                prop_assert_eq!(JoinToken::parse(&bad), Err(InvalidJoinToken), "{}", bad);
            }
            let good = [&[VERSION][..], &[7; 80]].concat();
            let as_such = coded(&good);
            // The rest is parsed as addresses in UTF-8, which these bytes are.
            prop_assert!(JoinToken::parse(&as_such).is_ok());
        }
    }

    #[test]
    fn a_truncated_token_is_refused() {
        let token = JoinToken {
            ca: Digest::from_bytes([1; 32]),
            secret: Secret::new([2; 32]),
            addresses: Vec::new(),
        };
        let text = token.to_text().into_inner();
        assert_eq!(
            JoinToken::parse(&text[..text.len() - 4]),
            Err(InvalidJoinToken)
        );
        assert_eq!(JoinToken::parse(&text[4..]), Err(InvalidJoinToken));
        assert_eq!(JoinToken::parse(""), Err(InvalidJoinToken));
    }
}
