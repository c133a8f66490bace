//! The objects that a watch carries, and the keys that name them.

use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{FabricKind, Incarnation, InstanceId, MacAddr, Name, NodeId};

use super::{AgentInstance, Incoming, MeshClients, RedisAccess};

/// An object of a node's slice.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum SliceObject {
    /// The node's own configuration.
    Node(NodeSlice),
    /// An instance that is placed on the node.
    Instance(Box<AgentInstance>),
    /// Another node of the cluster.
    Peer(Peer),
    /// An instance that the node receives from another one.
    Incoming(Box<Incoming>),
}

impl SliceObject {
    /// The kinds that this version knows.
    pub const KINDS: [&'static str; 4] = ["incoming", "instance", "node", "peer"];
}

/// Names an object that left the slice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(into = "KeyFields", try_from = "KeyFields")]
pub enum SliceKey {
    /// An instance.
    Instance(InstanceId),
    /// Another node.
    Peer(NodeId),
}

/// The form of a [`SliceKey`] in a frame.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct KeyFields {
    /// Kind of the object, as in `put`.
    #[serde(default)]
    kind: String,
    /// Id of the object.
    #[serde(default)]
    id: String,
    /// The same as `id`. Earlier versions know only this field; their agents find no instance with the id of a peer.
    #[serde(default)]
    instance: String,
}

impl From<SliceKey> for KeyFields {
    fn from(key: SliceKey) -> Self {
        let (kind, id) = match key {
            SliceKey::Instance(id) => ("instance", id.to_string()),
            SliceKey::Peer(id) => ("peer", id.to_string()),
        };
        Self {
            kind: kind.to_owned(),
            instance: id.clone(),
            id,
        }
    }
}

impl TryFrom<KeyFields> for SliceKey {
    type Error = String;

    fn try_from(fields: KeyFields) -> Result<Self, String> {
        let (kind, id) = if fields.kind.is_empty() {
            ("instance", &fields.instance)
        } else {
            (fields.kind.as_str(), &fields.id)
        };
        let invalid = || format!("{id:?} is not the id of an object");
        match kind {
            "instance" => id.parse().map(Self::Instance).map_err(|_| invalid()),
            "peer" => id.parse().map(Self::Peer).map_err(|_| invalid()),
            kind => Err(format!("unknown kind of object: {kind:?}")),
        }
    }
}

/// The configuration of a node by waifud.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeSlice {
    /// Id of the node.
    pub id: NodeId,
    /// The name.
    pub name: Name,
    /// The subnet of guests on the node, for example 10.144.1.0/24.
    #[schema(value_type = String)]
    pub subnet: Ipv4Net,
    /// Address of the gateway: the first host address of the subnet.
    #[schema(value_type = String)]
    pub gateway: Ipv4Addr,
    /// The gateway's MAC address, the same on every node.
    pub gateway_mac: MacAddr,
    /// The incarnation of the database that an administrator has confirmed for this node; the node executes deletions
    /// ordered in it. Null after a restore until the node is confirmed.
    pub confirmed: Option<Incarnation>,
    /// The Redis to read bundles from, with a user that can only read; null if there is none.
    #[serde(default)]
    pub redis: Option<RedisAccess>,
    /// What carries packets to guests of other nodes.
    #[serde(default)]
    pub fabric: FabricKind,
    /// Machines that are not nodes and reach guests through the mesh; null if there are none. An agent with the feature
    /// `fabric-clients` lets them in.
    #[serde(default)]
    pub clients: Option<MeshClients>,
}

impl NodeSlice {
    /// Fields that earlier versions did not know. An agent that learns them by an upgrade watches from the beginning.
    pub const NEW_FIELDS: [&'static str; 4] = [
        "node.clients",
        "node.fabric",
        "node.redis",
        "peer.public_key",
    ];
}

/// Another node of the cluster, as every node knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    /// Id of the node.
    pub id: NodeId,
    /// The name.
    pub name: Name,
    /// The subnets of its guests, for example 10.144.2.0/24.
    #[schema(value_type = Vec<String>)]
    pub subnets: Vec<Ipv4Net>,
    /// Further addresses of guests on the node that are not in its subnets.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub extra: Vec<Ipv4Net>,
    /// The node's WireGuard public key in base64; null if it has not reported one.
    #[serde(default)]
    pub public_key: Option<String>,
    /// The addresses and ports at which the fabric may reach the node, in order of preference. Empty if unknown.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
    /// Whether waifud has recently had contact with the node.
    pub reachable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::WatchFrame;

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    /// Whether the frame has a revision. A new type of frame is decided here, and added to the frames below.
    fn has_revision(frame: &WatchFrame) -> bool {
        match frame {
            WatchFrame::Put { .. }
            | WatchFrame::Delete { .. }
            | WatchFrame::Tombstone { .. }
            | WatchFrame::Release { .. }
            | WatchFrame::Sync { .. } => true,
            WatchFrame::Names { .. }
            | WatchFrame::Stream(_)
            | WatchFrame::Ticket(_)
            | WatchFrame::ImageTicket(_)
            | WatchFrame::Ping => false,
        }
    }

    #[test]
    fn the_types_of_frames_with_a_revision_are_listed() {
        let frames = [
            format!(r#"{{"type":"delete","revision":"000000ab.7","kind":"peer","id":"{ID}"}}"#),
            format!(
                r#"{{"type":"tombstone","revision":"000000ab.7","tombstone":{{"instance":"{ID}","name":"web","epoch":1}}}}"#
            ),
            format!(
                r#"{{"type":"release","revision":"000000ab.7","release":{{"instance":"{ID}","epoch":1,"stop":true}}}}"#
            ),
            r#"{"type":"sync","revision":"000000ab.7"}"#.to_owned(),
            r#"{"type":"ping"}"#.to_owned(),
            format!(
                r#"{{"type":"put","revision":"000000ab.7","object":{{"kind":"peer","id":"{ID}","name":"a","subnets":[],"endpoint":null,"reachable":true}}}}"#
            ),
        ];
        let mut listed = Vec::new();
        for text in &frames {
            let frame: WatchFrame = serde_json::from_str(text).unwrap();
            let json = serde_json::to_value(&frame).unwrap();
            assert_eq!(has_revision(&frame), json.get("revision").is_some());
            if has_revision(&frame) {
                listed.push(json["type"].as_str().unwrap().to_owned());
            }
        }
        listed.sort();
        let mut known = WatchFrame::REVISIONED;
        known.sort_unstable();
        assert_eq!(listed, known);
    }

    #[test]
    fn a_peer_is_put_and_deleted_with_its_kind_and_id() {
        let peer = Peer {
            id: ID.parse().unwrap(),
            name: "birch".parse().unwrap(),
            subnets: vec!["10.144.2.0/24".parse().unwrap()],
            extra: Vec::new(),
            public_key: None,
            endpoints: Vec::new(),
            reachable: true,
        };
        let put = WatchFrame::Put {
            revision: "000000ab.7".parse().unwrap(),
            object: SliceObject::Peer(peer),
        };
        let text = serde_json::to_string(&put).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"type":"put","revision":"000000ab.7","object":{{"kind":"peer","id":"{ID}","name":"birch","subnets":["10.144.2.0/24"],"extra":[],"public_key":null,"endpoints":[],"reachable":true}}}}"#
            )
        );
        assert_eq!(serde_json::from_str::<WatchFrame>(&text).unwrap(), put);

        let delete = WatchFrame::Delete {
            revision: "000000ab.8".parse().unwrap(),
            key: SliceKey::Peer(ID.parse().unwrap()),
        };
        let text = serde_json::to_string(&delete).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"type":"delete","revision":"000000ab.8","kind":"peer","id":"{ID}","instance":"{ID}"}}"#
            )
        );
        assert_eq!(serde_json::from_str::<WatchFrame>(&text).unwrap(), delete);
    }

    #[test]
    fn every_kind_is_listed() {
        for kind in SliceObject::KINDS {
            let object = serde_json::json!({ "kind": kind });
            let error = serde_json::from_value::<SliceObject>(object).unwrap_err();
            assert!(
                error.to_string().contains("missing field"),
                "{kind}: {error}"
            );
        }
        let unknown = serde_json::json!({ "kind": "route" });
        let error = serde_json::from_value::<SliceObject>(unknown).unwrap_err();
        assert!(error.to_string().contains("unknown variant"), "{error}");
    }
}
