//! The objects in the paths of requests, as the OpenAPI document describes them.

use serde::Deserialize;
use utoipa::IntoParams;
use waifud_types::Digest;

use super::refusal::Refusal;
use crate::problems;

/// An instance.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct InstanceName {
    /// The instance's name or id.
    pub name: String,
}

/// A nic of an instance.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct InstanceNic {
    /// The instance's name or id.
    pub name: String,
    /// The nic's name or MAC address.
    pub nic: String,
}

/// An unmanaged instance on a node.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct UnmanagedInstance {
    /// The node's name or id.
    pub name: String,
    /// The instance's id or former name.
    pub instance: String,
}

/// An image.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct ImageDigest {
    /// `sha256:` followed by 64 hexadecimal digits.
    pub digest: String,
}

impl ImageDigest {
    /// The digest.
    pub fn parse(&self) -> Result<Digest, Refusal> {
        digest(&self.digest)
    }
}

/// A digest in a path.
pub fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse()
        .map_err(|e: waifud_types::digest::DigestError| {
            Refusal(problems::bad_query(
                "digest",
                e.to_string(),
                "use sha256: followed by the 64 hexadecimal digits of sha256sum",
            ))
        })
}

/// A client of the fabric.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct FabricClientName {
    /// The client's name.
    pub name: String,
}

/// A node.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct NodeName {
    /// The node's name or id.
    pub name: String,
}

/// A template.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct TemplateName {
    /// The template's name.
    pub name: String,
}

/// A network.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct NetworkName {
    /// The network's name.
    pub name: String,
}

/// A token.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct TokenName {
    /// The token's name.
    pub name: String,
}

/// A join token.
#[derive(Deserialize, IntoParams, Debug)]
#[into_params(parameter_in = Path)]
pub struct JoinTokenId {
    /// The join token's id.
    pub id: String,
}
