//! Joining: join tokens, and the transaction that spends one and issues a node certificate.

use waifud_api::join::{
    self, CreateJoinToken, CreatedJoinToken, DEFAULT_LIFETIME_S, JoinRequest, JoinToken,
    JoinTokenInfo, JoinTokenState, Joined, LIFETIME_MAX_S,
};
use waifud_api::{Page, ServerUrl};
use waifud_pki::{NodeRequest, fingerprint, public_key_pin, server_certificate};
use waifud_store::{JoinTokenRow, NodeKeyRow, ReadTx, StoreError, Taken, WriteTx};
use waifud_types::event::{Cause, ObjectRef};
use waifud_types::{Digest, Name, NodeId, Secret, Timestamp};

use crate::events::event_builder;
use crate::nodes::install::{self, Source};
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError, Peer, env, problems};

/// Tokens are listed for a week after they expire.
const SHOWN_S: i64 = 7 * 86_400;

impl Control {
    /// Creates a token. Only the answer contains its text.
    pub async fn create_join_token(
        &self,
        wanted: CreateJoinToken,
        by: &str,
        cause: Cause,
    ) -> Result<CreatedJoinToken, ControlError> {
        let life = wanted.expires_in_s.unwrap_or(DEFAULT_LIFETIME_S);
        if !(60..=LIFETIME_MAX_S).contains(&life) {
            let what = "the lifetime of the token";
            return Err(problems::out_of_range("expires_in_s", what, 60, LIFETIME_MAX_S).into());
        }
        // Before the token exists, so that a refusal changes nothing.
        let source = if wanted.install {
            self.node_packages().description().await?;
            Some((self.reachable_addresses()?, self.own_key_pin()?))
        } else {
            None
        };
        let (now, mut secret, mut id) = (self.now(), [0; 32], [0; 4]);
        self.entropy().fill(&mut secret);
        self.entropy().fill(&mut id);
        let row = JoinTokenRow {
            id: format!("{:08x}", u32::from_be_bytes(id)),
            name: wanted.name,
            created_by: by.to_owned(),
            created_at: now,
            expires_at: later(now, i64::try_from(life).unwrap_or(0)),
            spent: None,
        };
        let info = info(&row, now, None);
        let event = event_builder::event(
            now,
            "join-token.created",
            object(&row.id),
            &cause,
            row.name.as_ref().map_or_else(
                || "for one node".to_owned(),
                |name| format!("for node {name}"),
            ),
        );
        self.store()
            .write(move |tx| {
                tx.insert_join_token(&row, fingerprint(&secret), later(now, -SHOWN_S))?;
                tx.emit(&event).map(drop)
            })
            .await
            .map_err(|e: StoreError| e)?;
        let install = source.and_then(|(addresses, pin)| {
            let secret = join::secret_text(&secret);
            install::commands(&Source {
                addresses,
                pin,
                secret,
            })
        });
        Ok(CreatedJoinToken {
            info,
            token: self.join_token_text(secret),
            install,
        })
    }

    fn join_token_text(&self, secret: [u8; 32]) -> Secret<String> {
        let token = JoinToken {
            ca: self.authority().fingerprint(),
            secret: Secret::new(secret),
            addresses: self.config().addresses.clone(),
        };
        token.to_text()
    }

    /// waifud's addresses that other machines can reach.
    fn reachable_addresses(&self) -> Result<Vec<String>, ControlError> {
        let is_elsewhere = |url: &&String| {
            let url = url.parse::<ServerUrl>();
            url.is_ok_and(|url| !url.is_loopback())
        };
        let addresses = self.config().addresses.iter().filter(is_elsewhere);
        let addresses: Vec<String> = addresses.cloned().collect();
        if addresses.is_empty() {
            return Err(node_problems::not_reachable().into());
        }
        Ok(addresses)
    }

    /// The pin of the key in waifud's own certificate.
    fn own_key_pin(&self) -> Result<String, ControlError> {
        let certificate = server_certificate(&self.pki_dir())?
            .ok_or_else(|| ControlError::Inconsistent("waifud has no certificate".to_owned()))?;
        Ok(public_key_pin(&certificate)?)
    }

    /// The script that makes the owner of this join token a node.
    pub(crate) async fn install_script(&self, secret: &str) -> Result<String, ControlError> {
        let row = self.require_join_token(secret).await?;
        let package = self.node_packages().description().await?;
        let source = Source {
            addresses: self.reachable_addresses()?,
            pin: self.own_key_pin()?,
            secret: Secret::new(secret.to_owned()),
        };
        let bytes = join::secret_bytes(secret)
            .map_err(|_| node_problems::join_token("it has an invalid format"))?;
        let token = self.join_token_text(bytes);
        Ok(install::script(
            &source,
            &token,
            row.name.as_ref(),
            &package,
        ))
    }

    /// All tokens, oldest first.
    pub async fn join_tokens(&self) -> Result<Page<JoinTokenInfo>, ControlError> {
        let now = self.now();
        self.store()
            .read(move |tx| {
                let shown = tx.join_tokens()?.into_iter().map(|(row, node)| {
                    let spent = row.spent.map(|(id, _)| match node {
                        Some(name) => name.to_string(),
                        None => id.to_string(),
                    });
                    info(&row, now, spent)
                });
                Ok(Page {
                    items: shown.collect(),
                    next: None,
                    revision: tx.at(tx.newest_event()?),
                })
            })
            .await
            .map_err(|e: StoreError| e.into())
    }

    /// Revokes a token. A node that joined with it stays.
    pub async fn revoke_join_token(&self, id: String, cause: Cause) -> Result<(), ControlError> {
        let now = self.now();
        self.store()
            .write(move |tx| {
                if !tx.delete_join_token(&id)? {
                    return Err(problems::not_found("join-token", &id).into());
                }
                tx.emit(&event_builder::event(
                    now,
                    "join-token.revoked",
                    object(&id),
                    &cause,
                    "revoked",
                ))?;
                Ok::<_, ControlError>(())
            })
            .await
    }

    /// Refuses an invalid join token before the request's body is read, or returns the valid one. `join` checks it again.
    pub(crate) async fn require_join_token(
        &self,
        secret: &str,
    ) -> Result<JoinTokenRow, ControlError> {
        let secret = join::secret_bytes(secret)
            .map_err(|_| node_problems::join_token("it has an invalid format"))?;
        let digest = fingerprint(&secret);
        let now = self.now();
        let row = self
            .store()
            .read(move |tx| tx.join_token(digest))
            .await
            .map_err(|e: StoreError| e)?
            .ok_or_else(|| node_problems::join_token("it is unknown or was revoked"))?;
        if row.expires_at <= now {
            return Err(node_problems::join_token("it has expired").into());
        }
        Ok(row)
    }

    /// Admits a node: spends the token, stores the node's key and issues its certificate, in one transaction. The same key
    /// may repeat the request until the token expires, since an answer can be lost.
    pub async fn join(
        &self,
        request: JoinRequest,
        peer: Peer,
        request_id: &str,
    ) -> Result<Joined, ControlError> {
        let secret = request
            .secret()
            .map_err(|_| node_problems::join_token("it has an invalid format"))?;
        let csr =
            NodeRequest::parse(&request.csr).map_err(|error| node_problems::bad_csr(&error))?;
        let cause = peer.cause_of(&request.name, request_id);
        let control = self.clone();
        let joined = self
            .store()
            .write(move |tx| control.join_in(tx, &request, fingerprint(&secret), &csr, &cause))
            .await?;
        tracing::info!(node = %joined.name, from = %peer.from(), "a node was admitted");
        Ok(joined)
    }

    fn join_in(
        &self,
        tx: &mut WriteTx<'_>,
        request: &JoinRequest,
        secret: Digest,
        csr: &NodeRequest,
        cause: &Cause,
    ) -> Result<Joined, ControlError> {
        let (now, key) = (self.now(), csr.digest());
        let token = tx
            .join_token(secret)?
            .ok_or_else(|| node_problems::join_token("it is unknown or was revoked"))?;
        if token.expires_at <= now {
            return Err(node_problems::join_token("it has expired").into());
        }
        let known = match token.spent {
            Some((node, by)) => {
                // If the node's key was replaced since, this one is not valid any more.
                let again = tx.node_key(node)?.filter(|row| row.key == key && by == key);
                Some(again.ok_or_else(|| {
                    node_problems::join_token("another machine has already used it")
                })?)
            }
            None => None,
        };
        let row = match known {
            Some(row) => row,
            None => self.admit(tx, request, &token, key, now, cause)?,
        };
        let certificate = self
            .authority()
            .issue_node(csr, row.node)
            .map_err(|error| {
                ControlError::Inconsistent(format!("issuing a certificate failed: {error}"))
            })?;
        Ok(Joined {
            node: row.node,
            name: row.name,
            certificate,
            ca: self.authority().to_pem(),
            addresses: self.config().addresses.clone(),
        })
    }

    fn admit(
        &self,
        tx: &mut WriteTx<'_>,
        request: &JoinRequest,
        token: &JoinTokenRow,
        key: Digest,
        now: Timestamp,
        cause: &Cause,
    ) -> Result<NodeKeyRow, ControlError> {
        let name = token.name.clone().unwrap_or_else(|| request.name.clone());
        if name != request.name {
            return Err(node_problems::join_token_for_other_name(&name).into());
        }
        let node = match (tx.node_id_named(&name)?, &token.name) {
            // Only a token for this node may replace its key.
            (Some(_), None) => return Err(node_problems::join_name_taken(&name).into()),
            (Some(node), Some(_)) => node,
            (None, _) => NodeId::from_uuid(env::uuid(self.clock(), self.entropy())),
        };
        let row = NodeKeyRow { node, name, key };
        tx.put_node_key(&row, now).map_err(|error| match error {
            StoreError::Taken(Taken::NodeName) => node_problems::join_name_taken(&row.name).into(),
            other => ControlError::from(other),
        })?;
        tx.spend_join_token(&token.id, node, key)?;
        tx.emit(&event_builder::event(
            now,
            "node.admitted",
            event_builder::node(node, &row.name),
            cause,
            format!("with token {} of {}", token.id, token.created_by),
        ))?;
        Ok(row)
    }

    /// Whether the key is the node's current one.
    pub(crate) async fn is_admitted(
        &self,
        node: NodeId,
        key: Digest,
    ) -> Result<bool, ControlError> {
        self.store()
            .read(move |tx| is_admitted(&tx, node, key))
            .await
    }

    /// The name of an admitted node, regardless of its key.
    pub(crate) async fn admitted_name(&self, node: NodeId) -> Result<Option<Name>, ControlError> {
        let read = self.store().read(move |tx| tx.node_key(node));
        Ok(read.await?.map(|admitted| admitted.name))
    }
}

/// Whether the key is the node's current one.
pub(crate) fn is_admitted(
    tx: &ReadTx<'_>,
    node: NodeId,
    key: Digest,
) -> Result<bool, ControlError> {
    Ok(tx.node_key(node)?.is_some_and(|row| row.key == key))
}

fn later(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_add(jiff::SignedDuration::from_secs(seconds))
        .unwrap_or(now)
}

fn object(id: &str) -> ObjectRef {
    ObjectRef {
        kind: "join-token".to_owned(),
        id: id.to_owned(),
        name: id.to_owned(),
    }
}

fn info(row: &JoinTokenRow, now: Timestamp, node: Option<String>) -> JoinTokenInfo {
    JoinTokenInfo {
        id: row.id.clone(),
        name: row.name.as_ref().map(ToString::to_string),
        state: if row.spent.is_some() {
            JoinTokenState::Spent
        } else if row.expires_at <= now {
            JoinTokenState::Expired
        } else {
            JoinTokenState::Unused
        },
        created_by: row.created_by.clone(),
        created_at: row.created_at,
        expires_at: row.expires_at,
        node,
    }
}
