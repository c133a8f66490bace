//! How a node gets in: join tokens, and the one request that a node makes before it has a certificate.
//!
//! `POST /v1/agent/join` [`JoinRequest`] is answered with [`Joined`]. A token lets one key in once; the same key may ask
//! again until the token expires, because an answer can be lost.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Digest, Name, NodeId, Secret, Timestamp};

/// What every token's text begins with.
const PREFIX: &str = "wfj_";
/// The layout of what follows.
const VERSION: u8 = 1;
/// A text that is longer was never one of ours.
const TEXT_MAX: usize = 4096;
/// The header of a join request that repeats [`JoinRequest::secret`]: waifud looks at it before it reads the body.
pub const JOIN_TOKEN_HEADER: &str = "waifud-join-token";
/// How long a token lives unless said otherwise: an hour.
pub const DEFAULT_LIFE_S: u64 = 3600;
/// How long a token may live: 30 days.
pub const LIFE_MAX_S: u64 = 30 * 86_400;

/// What the text of a token says: `wfj_` and, in base64url without padding, one byte 1, the SHA-256 of waifud's CA
/// certificate, 32 random bytes, and waifud's URLs, each on a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinToken {
    /// The CA that waifud's certificate is of.
    pub ca: Digest,
    /// What lets the node in.
    pub secret: Secret<[u8; 32]>,
    /// Where waifud is, `https://HOST:PORT`.
    pub addresses: Vec<String>,
}

/// The text is no join token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("that is no join token: `waifuctl node token create` prints one, which begins with wfj_")]
pub struct NotAJoinToken;

impl JoinToken {
    /// The text to paste on the node.
    pub fn to_text(&self) -> Secret<String> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(self.ca.bytes());
        bytes.extend_from_slice(self.secret.expose());
        bytes.extend_from_slice(self.addresses.join("\n").as_bytes());
        Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Reads such a text; spaces and line ends around it do not matter.
    pub fn parse(text: &str) -> Result<Self, NotAJoinToken> {
        let text = text.trim();
        let coded = text.strip_prefix(PREFIX).ok_or(NotAJoinToken)?;
        if text.len() > TEXT_MAX {
            return Err(NotAJoinToken);
        }
        let bytes = URL_SAFE_NO_PAD.decode(coded).map_err(|_| NotAJoinToken)?;
        let (version, rest) = bytes.split_first().ok_or(NotAJoinToken)?;
        let (ca, rest) = rest.split_first_chunk::<32>().ok_or(NotAJoinToken)?;
        let (secret, rest) = rest.split_first_chunk::<32>().ok_or(NotAJoinToken)?;
        let addresses = std::str::from_utf8(rest).map_err(|_| NotAJoinToken)?;
        if *version != VERSION {
            return Err(NotAJoinToken);
        }
        Ok(Self {
            ca: Digest::from_bytes(*ca),
            secret: Secret::new(*secret),
            addresses: addresses.lines().map(str::to_owned).collect(),
        })
    }
}

/// A node asks to be let in.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinRequest {
    /// The token's secret: 32 bytes in base64url without padding.
    pub secret: Secret<String>,
    /// The certificate signing request, as PEM. Only its key counts, an ECDSA key on P-256.
    pub csr: String,
    /// The name that the node wants; the token's own, when it has one.
    pub name: Name,
}

impl JoinRequest {
    /// With the secret as the wire has it.
    pub fn new(secret: &[u8; 32], csr: String, name: Name) -> Self {
        Self {
            secret: Secret::new(URL_SAFE_NO_PAD.encode(secret)),
            csr,
            name,
        }
    }

    /// The secret's bytes.
    pub fn secret(&self) -> Result<[u8; 32], NotAJoinToken> {
        secret_bytes(self.secret.expose())
    }
}

/// The bytes of a secret as the wire has it.
pub fn secret_bytes(text: &str) -> Result<[u8; 32], NotAJoinToken> {
    URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(NotAJoinToken)
}

/// The node is in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Joined {
    /// Its id, which its certificate names too.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Its certificate, as PEM.
    pub certificate: String,
    /// The CA's certificate, as PEM. The node checks it against the fingerprint that it came with.
    pub ca: String,
    /// Where waifud is.
    pub addresses: Vec<String>,
}

/// An administrator wants a token.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateJoinToken {
    /// Only for the node of this name; also for one that is in and lost its key.
    pub name: Option<Name>,
    /// How many seconds it is good for: one hour unless said otherwise, 30 days at most.
    pub expires_in_s: Option<u64>,
}

/// Where a token is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JoinTokenState {
    /// It lets a node in.
    Unused,
    /// A node came in by it; only that node's own key may still use it.
    Spent,
    /// Its time is over.
    Expired,
}

impl JoinTokenState {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unused => "unused",
            Self::Spent => "spent",
            Self::Expired => "expired",
        }
    }
}

/// A token, without what makes it one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenInfo {
    /// Names it, for `revoke`.
    pub id: String,
    /// The node that it is for, when for one only.
    pub name: Option<String>,
    /// Where it is in its life.
    pub state: JoinTokenState,
    /// Who made it.
    pub created_by: String,
    /// When.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Until when it is good.
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
    /// The node that came in by it.
    pub node: Option<String>,
}

/// A token, and its text: shown once and stored nowhere.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedJoinToken {
    /// What is known of it.
    #[serde(flatten)]
    pub info: JoinTokenInfo,
    /// What is pasted on the node: `waifud-agentd join --token TEXT`.
    pub token: Secret<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_survives_its_text(ca: [u8; 32], secret: [u8; 32], hosts in proptest::collection::vec("[a-z]{1,20}", 0..5)) {
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
            // Without the prefix, not in the alphabet, with too few bytes, and of another version.
            let version = if version < VERSION { version } else { version + 1 };
            let other = [&[version][..], &[7; 80]].concat();
            for bad in [text.clone(), format!("{PREFIX}{text}!"), coded(&short), coded(&other)] {
                prop_assert_eq!(JoinToken::parse(&bad), Err(NotAJoinToken), "{}", bad);
            }
            let good = [&[VERSION][..], &[7; 80]].concat();
            let as_such = coded(&good);
            // The last part is addresses, in UTF-8: those bytes are.
            prop_assert!(JoinToken::parse(&as_such).is_ok());
        }
    }

    #[test]
    fn a_cut_token_is_none() {
        let token = JoinToken {
            ca: Digest::from_bytes([1; 32]),
            secret: Secret::new([2; 32]),
            addresses: Vec::new(),
        };
        let text = token.to_text().into_inner();
        assert_eq!(
            JoinToken::parse(&text[..text.len() - 4]),
            Err(NotAJoinToken)
        );
        assert_eq!(JoinToken::parse(&text[4..]), Err(NotAJoinToken));
        assert_eq!(JoinToken::parse(""), Err(NotAJoinToken));
    }
}
