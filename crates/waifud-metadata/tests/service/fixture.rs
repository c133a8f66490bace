//! A service with two guests, and helpers to send requests to it.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use waifud_api::{
    agent::BundleRef,
    metadatad::{Assignment, Observation},
};
use waifud_cloudinit::{
    SEAL_ENTROPY, SealedBundle, Source, Tokens, VendorOptions, instance_id, render, seal,
};
use waifud_metadata::{
    BundleStore, FakeStore, FakeTunnel, GuestLimits, MetadataService, Parts, RedisBundles,
    StateStore, serve_guests, system_clock,
};
use waifud_redis::Redis;
use waifud_types::{InstanceId, Secret};
use waifud_wireguard::fake::{FakeDialer, listener};

/// Longer than every step takes on any machine, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const A: Ipv4Addr = Ipv4Addr::new(10, 144, 3, 10);
pub const B: Ipv4Addr = Ipv4Addr::new(10, 144, 3, 11);
pub const UNASSIGNED: Ipv4Addr = Ipv4Addr::new(10, 144, 3, 12);

/// A new instance, with its name in every document.
pub struct Guest {
    pub id: InstanceId,
    pub name: String,
    pub sealed: SealedBundle,
    pub assignment: Assignment,
}

impl Guest {
    pub fn new(name: &str, address: Ipv4Addr) -> Self {
        Self::with_user_data(InstanceId::generate(), name, address, "first")
    }

    pub fn with_user_data(id: InstanceId, name: &str, address: Ipv4Addr, words: &str) -> Self {
        let user_data = format!("#cloud-config\n# secret-of-{name} {words}\n");
        let documents = render(&Source {
            instance: id,
            instance_id: instance_id(id, 1),
            hostname: name.parse().unwrap(),
            domain: None,
            availability_zone: "alder".to_owned(),
            ssh_keys: Vec::new(),
            user_data: Some(Secret::new(user_data)),
            vendor_data: VendorOptions::default(),
            datasource: waifud_types::template::Datasource::Openstack,
            nics: Vec::new(),
            default_user: None,
        });
        let mut entropy = [0; SEAL_ENTROPY];
        for (byte, random) in entropy
            .iter_mut()
            .zip(InstanceId::generate().as_uuid().as_bytes())
        {
            *byte = *random;
        }
        let sealed = seal(&documents, &entropy).unwrap();
        let assignment = Assignment {
            name: name.parse().unwrap(),
            address,
            bundle: BundleRef {
                digest: sealed.digest,
                key: sealed.key.clone(),
                size_bytes: sealed.ciphertext.len() as u64,
            },
        };
        Self {
            id,
            name: name.to_owned(),
            sealed,
            assignment,
        }
    }

    /// The secret in a guest's documents, which no other guest may read.
    pub fn secret(&self) -> String {
        format!("secret-of-{}", self.name)
    }
}

/// Puts the guest's bundle and its assignment.
pub async fn admit(service: &MetadataService, guest: &Guest) {
    service
        .put_bundle(guest.sealed.digest, guest.sealed.ciphertext.clone().into())
        .await
        .unwrap();
    service
        .put_instance(guest.id, guest.assignment.clone())
        .await
        .unwrap();
}

/// The parts of a service on these stores, with a fake tunnel and default limits.
pub fn parts(bundles: impl BundleStore + 'static, state: impl StateStore + 'static) -> Parts {
    Parts {
        bundles: Arc::new(bundles),
        state: Arc::new(state),
        redis: Arc::new(RedisBundles::new(Arc::new(Redis), system_clock)),
        tunnel: Arc::new(FakeTunnel::default()),
        tokens: Tokens::new(&[7; 32]),
        limits: GuestLimits::default(),
        clock: system_clock,
        stop: CancellationToken::new(),
    }
}

pub struct Fixture {
    pub service: Arc<MetadataService>,
    pub tunnel: Arc<FakeTunnel>,
    pub guests: FakeDialer,
    pub stop: CancellationToken,
    pub serving: JoinHandle<()>,
}

impl Fixture {
    /// An empty service on a store.
    pub async fn on(store: FakeStore, limits: GuestLimits) -> Self {
        let stop = CancellationToken::new();
        let tunnel = Arc::new(FakeTunnel::default());
        let service = MetadataService::start(Parts {
            tunnel: Arc::<FakeTunnel>::clone(&tunnel),
            limits,
            stop: stop.clone(),
            ..parts(store.clone(), store)
        })
        .await
        .unwrap();
        let (guests, listener) = listener();
        let serving = tokio::spawn(serve_guests(listener, Arc::clone(&service), stop.clone()));
        Self {
            service,
            tunnel,
            guests,
            stop,
            serving,
        }
    }

    /// A service with the guest a on a store.
    pub async fn with_guest(store: &FakeStore) -> (Self, Guest) {
        let fixture = Self::on(store.clone(), GuestLimits::default()).await;
        let a = Guest::new("a", A);
        fixture.admit(&a).await;
        (fixture, a)
    }

    /// A service with the guests a and b.
    pub async fn new() -> (Self, Guest, Guest) {
        let (fixture, a) = Self::with_guest(&FakeStore::default()).await;
        let b = Guest::new("b", B);
        fixture.admit(&b).await;
        (fixture, a, b)
    }

    pub async fn admit(&self, guest: &Guest) {
        admit(&self.service, guest).await;
    }

    pub fn connect(&self, from: Ipv4Addr) -> DuplexStream {
        self.guests
            .connect(SocketAddrV4::new(from, 40_000))
            .unwrap()
    }

    /// Sends bytes unchanged and reads until the service closes the connection.
    pub async fn raw(&self, from: Ipv4Addr, bytes: &[u8]) -> String {
        let mut stream = self.connect(from);
        let mut answer = Vec::new();
        let exchange = async {
            // The service may refuse the request before it has read all of it.
            let _ = stream.write_all(bytes).await;
            let _ = stream.read_to_end(&mut answer).await;
        };
        timeout(PATIENCE, exchange).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A GET with additional header lines; returns the status and the complete answer.
    pub async fn get_with(&self, from: Ipv4Addr, target: &str, lines: &str) -> (u16, String) {
        let request = format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{lines}\r\n");
        let answer = self.raw(from, request.as_bytes()).await;
        (status(&answer), answer)
    }

    pub async fn get(&self, from: Ipv4Addr, target: &str) -> (u16, String) {
        self.get_with(from, target, "Host: 169.254.169.254\r\n")
            .await
    }

    pub async fn seen(&self) -> Vec<Observation> {
        self.service.observations(0, Duration::ZERO).await.items
    }
}

/// The status of an answer; 0 if there is none.
pub fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or_default()
}
