//! How nodes get in: tokens, and the transaction that spends one and issues a certificate.

use waifud_api::Page;
use waifud_api::join::{
    self, CreateJoinToken, CreatedJoinToken, DEFAULT_LIFE_S, JoinRequest, JoinToken, JoinTokenInfo,
    JoinTokenState, Joined, LIFE_MAX_S,
};
use waifud_pki::{NodeRequest, fingerprint};
use waifud_store::{JoinTokenRow, NodeKeyRow, ReadTx, StoreError, Taken, WriteTx};
use waifud_types::event::ObjectRef;
use waifud_types::{Digest, NodeId, Secret, Timestamp};

use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError, Peer, env, problems};

/// Tokens are listed for so long after they expired: a week.
const SHOWN_S: i64 = 7 * 86_400;

impl Control {
    /// Makes a token. Its text is in the answer and nowhere else.
    pub async fn create_join_token(
        &self,
        wanted: CreateJoinToken,
        by: &str,
        cause: Cause,
    ) -> Result<CreatedJoinToken, ControlError> {
        let life = wanted.expires_in_s.unwrap_or(DEFAULT_LIFE_S);
        if !(60..=LIFE_MAX_S).contains(&life) {
            let what = "how long the token lives, in seconds,";
            return Err(problems::out_of_range("expires_in_s", what, 60, LIFE_MAX_S).into());
        }
        let (now, mut secret, mut id) = (self.now(), [0; 32], [0; 4]);
        self.shared.entropy.fill(&mut secret);
        self.shared.entropy.fill(&mut id);
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
                || "it lets one node in".to_owned(),
                |name| format!("it lets node {name} in"),
            ),
        );
        self.shared
            .store
            .write(move |tx| {
                tx.insert_join_token(&row, fingerprint(&secret), later(now, -SHOWN_S))?;
                tx.emit(&event).map(drop)
            })
            .await
            .map_err(|e: StoreError| e)?;
        let token = JoinToken {
            ca: self.shared.authority.fingerprint(),
            secret: Secret::new(secret),
            addresses: self.shared.config.addresses.clone(),
        };
        Ok(CreatedJoinToken {
            info,
            token: token.to_text(),
        })
    }

    /// All tokens, the oldest first.
    pub async fn join_tokens(&self) -> Result<Page<JoinTokenInfo>, ControlError> {
        let now = self.now();
        self.shared
            .store
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

    /// Makes a token worthless. A node that came in by it stays.
    pub async fn revoke_join_token(&self, id: String, cause: Cause) -> Result<(), ControlError> {
        let now = self.now();
        self.shared
            .store
            .write(move |tx| {
                if !tx.delete_join_token(&id)? {
                    return Err(problems::not_found("join-token", &id).into());
                }
                tx.emit(&event_builder::event(
                    now,
                    "join-token.revoked",
                    object(&id),
                    &cause,
                    "no node gets in by it any more",
                ))?;
                Ok::<_, ControlError>(())
            })
            .await
    }

    /// Refuses a join token that lets nobody in, before more of its request is read. `join` looks at it again.
    pub(crate) async fn must_know_join_token(&self, secret: &str) -> Result<(), ControlError> {
        let secret = join::secret_bytes(secret)
            .map_err(|_| node_problems::join_token("it is none of ours"))?;
        let digest = fingerprint(&secret);
        let now = self.now();
        let row = self
            .shared
            .store
            .read(move |tx| tx.join_token(digest))
            .await
            .map_err(|e: StoreError| e)?
            .ok_or_else(|| node_problems::join_token("it is unknown, or was revoked"))?;
        if row.expires_at <= now {
            return Err(node_problems::join_token("it has expired").into());
        }
        Ok(())
    }

    /// Lets a node in: spends the token, makes its key the node's and issues its certificate, in one transaction. The
    /// same key may ask again until the token expires, as an answer can be lost.
    pub async fn join(
        &self,
        request: JoinRequest,
        peer: Peer,
        request_id: &str,
    ) -> Result<Joined, ControlError> {
        let secret = request
            .secret()
            .map_err(|_| node_problems::join_token("it is none of ours"))?;
        let csr =
            NodeRequest::parse(&request.csr).map_err(|error| node_problems::bad_csr(&error))?;
        let cause = Cause::node(
            request.name.as_str(),
            Some(peer.from()),
            Some(request_id.to_owned()),
        );
        let control = self.clone();
        let joined = self
            .shared
            .store
            .write(move |tx| control.join_in(tx, &request, fingerprint(&secret), &csr, &cause))
            .await?;
        tracing::info!(node = %joined.name, from = %peer.from(), "a node was let in");
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
            .ok_or_else(|| node_problems::join_token("it is unknown, or was revoked"))?;
        if token.expires_at <= now {
            return Err(node_problems::join_token("it has expired").into());
        }
        let known = match token.spent {
            Some((node, by)) => {
                // The key may have been replaced since: then this one is worth nothing either.
                let again = tx.node_key(node)?.filter(|row| row.key == key && by == key);
                Some(
                    again
                        .ok_or_else(|| node_problems::join_token("another machine has used it"))?,
                )
            }
            None => None,
        };
        let row = match known {
            Some(row) => row,
            None => self.admit(tx, request, &token, key, now, cause)?,
        };
        let certificate = self
            .shared
            .authority
            .issue_node(csr, row.node)
            .map_err(|error| ControlError::Inconsistent(format!("no certificate: {error}")))?;
        Ok(Joined {
            node: row.node,
            name: row.name,
            certificate,
            ca: self.shared.authority.to_pem(),
            addresses: self.shared.config.addresses.clone(),
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
            return Err(node_problems::join_other_name(&name).into());
        }
        let node = match (tx.node_id_named(&name)?, &token.name) {
            // Only a token that says so gives a node to another key.
            (Some(_), None) => return Err(node_problems::join_name_taken(&name).into()),
            (Some(node), Some(_)) => node,
            (None, _) => NodeId::from_uuid(env::uuid(
                self.shared.clock.as_ref(),
                self.shared.entropy.as_ref(),
            )),
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
            format!("by token {} of {}", token.id, token.created_by),
        ))?;
        Ok(row)
    }

    /// Whether the key is the one that the node is known by.
    pub(crate) async fn is_admitted(
        &self,
        node: NodeId,
        key: Digest,
    ) -> Result<bool, ControlError> {
        self.shared
            .store
            .read(move |tx| is_admitted(&tx, node, key))
            .await
    }
}

/// Whether the key is the one that the node is known by.
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
