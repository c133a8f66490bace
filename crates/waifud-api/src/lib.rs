//! The HTTP API: requests, responses, problems, and the typed clients.
//!
//! Types that the core also uses (specs, states, events, templates) are in `waifud-types`. Paths are under `/v1`;
//! `docs/reference/openapi.json` is generated from the server.

pub mod agent;
pub mod agent_client;
pub mod capacity;
pub mod client;
pub mod disk_transfer;
pub mod dns;
pub mod download;
pub mod drain;
pub mod fabric_client;
pub mod firewall;
pub mod guest_command;
pub mod hint;
pub mod instance;
pub mod join;
pub mod metadatad;
pub mod metadatad_client;
pub mod moving;
pub mod network;
pub mod node;
pub mod node_to_node;
pub mod page;
pub mod problem;
pub mod server;
pub mod server_url;
pub mod stream;
pub mod template;
pub mod token;

pub use capacity::{Capacity, InstanceSize, NodeFit, Survival, UnplacedInstance};
pub use dns::{Dns, DnsServer, DnsServerState};
pub use download::{CatalogEntry, CreateDownload, Download, DownloadState};
pub use drain::{Drain, DrainNode, DrainedInstance};
pub use fabric_client::{CreateFabricClient, FabricClient, FabricClientConfig};
pub use firewall::{
    FirewallDefault, FirewallRuleState, InstanceFirewall, PeerAddresses, SetFirewall,
    SetFirewallRule,
};
pub use hint::Hint;
pub use instance::{
    CreateInstance, CreateNic, DryRun, Instance, InstanceDescription, PlacementVerdict, Publish,
    RecreateInstance, UpdateInstance, Why,
};
pub use metadatad_client::{MetadatadClient, MetadatadError};
pub use moving::{InstanceMove, MoveInstance};
pub use network::{
    CreateNetwork, Fabric, FabricNode, FabricRoute, Network, NetworkNode, SetFabric,
};
pub use node::{AdoptInstance, Node, RemoveNode, Unmanaged, UpdateNode};
pub use page::Page;
pub use problem::Problem;
pub use server::{BackupState, Certificate, Database, DirectorySpace, RedisState, Server};
pub use server_url::ServerUrl;
pub use template::{CreateTemplate, Image};
pub use token::{CreateToken, CreatedToken, Token, Whoami};
