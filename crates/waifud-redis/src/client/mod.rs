//! The client: the crate `redis` on a stream of our own, so that TLS is the same as everywhere else.

mod tls;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisConnectionInfo,
    RedisError, ServerErrorKind,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use waifud_types::Digest;

pub use self::tls::check_ca;
use crate::{Connection, Connector, Endpoint, Limits, RedisAccess, Trouble};

/// How many keys one `SCAN` looks at.
const SCAN_COUNT: usize = 1000;
/// How many bundles one request reads, writes or removes.
const BATCH: usize = 128;

/// Connects to a real Redis.
#[derive(Clone, Copy, Debug, Default)]
pub struct Redis;

/// An authenticated connection. Its task ends when it is dropped.
struct Client {
    connection: MultiplexedConnection,
    driver: tokio::task::JoinHandle<()>,
    names: Names,
    prefix: String,
    answer: Duration,
}

/// What errors name.
#[derive(Clone)]
struct Names {
    address: String,
    user: String,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[async_trait]
impl Connector for Redis {
    async fn connect(
        &self,
        access: &RedisAccess,
        limits: Limits,
    ) -> Result<Arc<dyn Connection>, Trouble> {
        let endpoint: Endpoint = access.url.parse().map_err(|error| Trouble::Setting {
            why: format!("{error}"),
        })?;
        let names = Names {
            address: endpoint.to_string(),
            user: access.username.as_deref().unwrap_or("default").to_owned(),
        };
        let made = timeout(limits.connect, open(access, &endpoint, &names)).await;
        let (connection, driver) = made.map_err(|_| Trouble::Slow {
            address: names.address.clone(),
            after: limits.connect,
        })??;
        Ok(Arc::new(Client {
            connection,
            driver,
            names,
            prefix: access.prefix.clone(),
            answer: limits.answer,
        }))
    }
}

async fn open(
    access: &RedisAccess,
    endpoint: &Endpoint,
    names: &Names,
) -> Result<(MultiplexedConnection, tokio::task::JoinHandle<()>), Trouble> {
    let unreachable = |error: std::io::Error| Trouble::Unreachable {
        address: names.address.clone(),
        why: error.to_string(),
    };
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
    let stream = stream.await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let stream = tls::wrap(access, endpoint, stream).await?;
    let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(username) = &access.username {
        info = info.set_username(username);
    }
    if let Some(password) = &access.password {
        info = info.set_password(password.expose());
    }
    // Time limits are ours.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
    let (connection, driver) = made.map_err(|error| names.trouble(&error, "log in"))?;
    Ok((connection, tokio::spawn(driver)))
}

impl Names {
    fn trouble(&self, error: &RedisError, action: &'static str) -> Trouble {
        let address = self.address.clone();
        let user = self.user.clone();
        // Of several commands in one request, the first error counts.
        let errors = error.clone().into_server_errors();
        let first = errors.as_ref().and_then(|errors| errors.first());
        let code = first.map(|(_, error)| error.code()).or(error.code());
        let code = code.unwrap_or_default();
        match (error.kind(), code) {
            (ErrorKind::AuthenticationFailed, _) | (_, "WRONGPASS" | "NOAUTH") => {
                Trouble::Credentials { address, user }
            }
            (ErrorKind::Server(ServerErrorKind::NoPerm), _) => Trouble::Denied {
                address,
                user,
                action,
            },
            (_, "OOM") => Trouble::Full { address },
            (ErrorKind::Io, _) => Trouble::Unreachable {
                address,
                why: "the connection was closed".to_owned(),
            },
            (_, code) => {
                // Codes are words in capitals. Anything else is text of the server.
                let is_code = |c: char| c.is_ascii_uppercase();
                let known = !code.is_empty() && code.len() <= 32 && code.chars().all(is_code);
                Trouble::Refused {
                    address,
                    code: if known { code } else { "unknown" }.to_owned(),
                }
            }
        }
    }
}

impl Client {
    fn key(&self, bundle: &Digest) -> String {
        format!("{}:bundle:{}", self.prefix, bundle.hex())
    }

    fn contents_key(&self) -> String {
        format!("{}:contents", self.prefix)
    }

    async fn within<T: FromRedisValue>(
        &self,
        action: &'static str,
        call: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, Trouble> {
        let answer = timeout(self.answer, call).await;
        let answer = answer.map_err(|_| Trouble::Slow {
            address: self.names.address.clone(),
            after: self.answer,
        })?;
        answer.map_err(|error| self.names.trouble(&error, action))
    }

    async fn one<T: FromRedisValue>(&self, action: &'static str, cmd: &Cmd) -> Result<T, Trouble> {
        let mut connection = self.connection.clone();
        self.within(action, cmd.query_async(&mut connection)).await
    }

    async fn many<T: FromRedisValue>(
        &self,
        action: &'static str,
        pipeline: &Pipeline,
    ) -> Result<T, Trouble> {
        let mut connection = self.connection.clone();
        self.within(action, pipeline.query_async(&mut connection))
            .await
    }
}

#[async_trait]
impl Connection for Client {
    async fn ping(&self) -> Result<(), Trouble> {
        self.one("ping", &redis::cmd("PING")).await
    }

    async fn read(&self, wanted: &[(Digest, u64)]) -> Result<Vec<Option<Bytes>>, Trouble> {
        let mut found = Vec::with_capacity(wanted.len());
        for batch in wanted.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for (bundle, size) in batch {
                // One byte more than its size, so that a longer value is noticed and never read completely.
                let get = pipeline.cmd("GETRANGE").arg(self.key(bundle));
                get.arg(0).arg(*size);
            }
            let values: Vec<Vec<u8>> = self.many("read bundles", &pipeline).await?;
            found.extend(values.into_iter().map(|value| {
                // Redis answers with an empty text where there is no key.
                (!value.is_empty()).then(|| value.into())
            }));
        }
        Ok(found)
    }

    async fn list(&self) -> Result<BTreeSet<Digest>, Trouble> {
        let start = format!("{}:bundle:", self.prefix);
        let mut found = BTreeSet::new();
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{start}*"));
            scan.arg("COUNT").arg(SCAN_COUNT);
            let (next, keys): (u64, Vec<Vec<u8>>) = self.one("list keys", &scan).await?;
            let name = |key: &Vec<u8>| {
                let name = std::str::from_utf8(key).ok()?.strip_prefix(&start)?;
                // Only what waifud itself has written.
                let bundle: Digest = name.parse().ok()?;
                (bundle.hex() == name).then_some(bundle)
            };
            found.extend(keys.iter().filter_map(name));
            if next == 0 {
                return Ok(found);
            }
            cursor = next;
        }
    }

    async fn write(&self, bundles: Vec<(Digest, Vec<u8>)>) -> Result<(), Trouble> {
        for batch in bundles.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for (bundle, bytes) in batch {
                let set = pipeline.cmd("SET").arg(self.key(bundle));
                set.arg(bytes.as_slice()).ignore();
            }
            self.many::<()>("write bundles", &pipeline).await?;
        }
        Ok(())
    }

    async fn remove(&self, bundles: Vec<Digest>) -> Result<(), Trouble> {
        for batch in bundles.chunks(BATCH) {
            let mut del = redis::cmd("DEL");
            for bundle in batch {
                del.arg(self.key(bundle));
            }
            self.one::<i64>("remove bundles", &del).await?;
        }
        Ok(())
    }

    async fn contents(&self) -> Result<Option<String>, Trouble> {
        let mut get = redis::cmd("GETRANGE");
        get.arg(self.contents_key()).arg(0).arg(255);
        let text: Vec<u8> = self.one("read PREFIX:contents", &get).await?;
        Ok((!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned()))
    }

    async fn set_contents(&self, text: &str) -> Result<(), Trouble> {
        let mut set = redis::cmd("SET");
        set.arg(self.contents_key()).arg(text);
        self.one("write PREFIX:contents", &set).await
    }

    async fn may_write(&self) -> Result<bool, Trouble> {
        // Expires at once where it is permitted.
        let mut set = redis::cmd("SET");
        let key = format!("{}:bundle:write-check", self.prefix);
        set.arg(key).arg("").arg("PX").arg(1);
        match self.one::<()>("write bundles", &set).await {
            Err(Trouble::Denied { .. }) => Ok(false),
            // Redis checks permissions first.
            Ok(()) | Err(Trouble::Full { .. } | Trouble::Refused { .. }) => Ok(true),
            Err(trouble) => Err(trouble),
        }
    }
}
