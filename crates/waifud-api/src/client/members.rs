//! Routes for tokens, join tokens, nodes and unmanaged instances.

use reqwest::Method;
use waifud_types::{InstanceId, NodeId};

use super::{Client, ClientError, ListQuery};
use crate::join::{CreateJoinToken, CreatedJoinToken, JoinTokenInfo};
use crate::{
    AdoptInstance, CreateToken, CreatedToken, Instance, Node, Page, RemoveNode, Token, UpdateNode,
    Whoami,
};

impl Client {
    /// Adopts an unmanaged instance, under a new name if one is given.
    pub async fn adopt(
        &self,
        node: NodeId,
        instance: InstanceId,
        name: Option<&str>,
    ) -> Result<Instance, ClientError> {
        let (node, instance) = (node.to_string(), instance.to_string());
        let request = AdoptInstance {
            name: name.map(str::to_owned),
        };
        let path = ["nodes", &node, "unmanaged", &instance, "adopt"];
        self.json(self.request(Method::POST, &path).json(&request))
            .await
    }

    /// Orders the destruction of an unmanaged instance.
    pub async fn delete_unmanaged(
        &self,
        node: NodeId,
        instance: InstanceId,
    ) -> Result<(), ClientError> {
        let (node, instance) = (node.to_string(), instance.to_string());
        let path = ["nodes", &node, "unmanaged", &instance];
        self.send(self.request(Method::DELETE, &path))
            .await
            .map(drop)
    }

    /// Creates a join token.
    pub async fn create_join_token(
        &self,
        request: &CreateJoinToken,
    ) -> Result<CreatedJoinToken, ClientError> {
        self.json(self.request(Method::POST, &["join-tokens"]).json(request))
            .await
    }

    /// Lists all join tokens.
    pub async fn join_tokens(&self) -> Result<Page<JoinTokenInfo>, ClientError> {
        self.json(self.get(&["join-tokens"])).await
    }

    /// Revokes a join token.
    pub async fn revoke_join_token(&self, id: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["join-tokens", id]))
            .await
            .map(drop)
    }

    /// Returns the authenticated caller.
    pub async fn whoami(&self) -> Result<Whoami, ClientError> {
        self.json(self.get(&["whoami"])).await
    }

    /// Creates a token; the response contains its secret.
    pub async fn create_token(&self, request: &CreateToken) -> Result<CreatedToken, ClientError> {
        self.json(self.request(Method::POST, &["tokens"]).json(request))
            .await
    }

    /// Lists tokens.
    pub async fn tokens(&self, query: &ListQuery) -> Result<Page<Token>, ClientError> {
        self.json(self.get(&["tokens"]).query(query)).await
    }

    /// Revokes a token.
    pub async fn revoke_token(&self, name: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["tokens", name]))
            .await
            .map(drop)
    }

    /// Sets and removes labels of a node.
    pub async fn update_node(&self, name: &str, change: &UpdateNode) -> Result<Node, ClientError> {
        let request = self.request(Method::PATCH, &["nodes", name]).json(change);
        self.json(request).await
    }

    /// Removes a node.
    pub async fn remove_node(&self, name: &str, how: RemoveNode) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &["nodes", name]).query(&how);
        self.send(request).await.map(drop)
    }

    /// Confirms a node after a restored backup.
    pub async fn confirm_node(&self, node: NodeId) -> Result<Node, ClientError> {
        let path = ["nodes", &node.to_string(), "confirm"];
        self.json(self.request(Method::POST, &path)).await
    }
}
