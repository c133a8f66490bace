//! Selects the connection to close when there are too many: a pure function over a table of all connections.
//!
//! A connection is *unproven* until its handshake or a request on it has been authenticated ([`ConnectionProof`]). The
//! number of unproven connections is limited for each source address and in total. Beyond a limit, the oldest unproven
//! connection of the source with the most of them is closed, so a source that floods waifud closes its own connections.
//! When all connections are in use, the same applies to proven ones: the token or node with the most connections loses its
//! oldest.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;
use waifud_control::{ConnectionProof, source_network};
use waifud_kit::sync::lock;

/// The maximum number of connections: enough for 1,000 nodes with a watch, a report and a download each.
const TOTAL: usize = 4096;
/// The maximum number of unproven connections. Each uses up to 64 KiB of buffers.
const UNPROVEN: usize = 512;
/// The maximum number of unproven connections from one source.
const UNPROVEN_PER_SOURCE: usize = 64;

/// Limits on the number of connections.
#[derive(Clone, Copy, Debug)]
struct Limits {
    total: usize,
    unproven: usize,
    unproven_per_source: usize,
}

/// The holder of a connection: its source address while it is unproven, then a token or a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Holder {
    Source(IpAddr),
    Proven(u64),
}

#[derive(Debug)]
struct Entry {
    source: IpAddr,
    proof: ConnectionProof,
    close: CancellationToken,
}

impl Entry {
    fn holder(&self) -> Holder {
        self.proof
            .holder()
            .map_or(Holder::Source(self.source), Holder::Proven)
    }
}

/// The connections of all listeners, by age.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

/// An entry in the table, removed when dropped.
#[derive(Debug)]
pub struct Place {
    table: Connections,
    id: u64,
    /// Set when a request on this connection is authenticated.
    pub proof: ConnectionProof,
    /// Canceled to close this connection in favor of another.
    pub close: CancellationToken,
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.0)
    }

    /// Admits a new connection, and closes others if a limit is exceeded.
    pub fn admit(&self, from: SocketAddr) -> Place {
        const LIMITS: Limits = Limits {
            total: TOTAL,
            unproven: UNPROVEN,
            unproven_per_source: UNPROVEN_PER_SOURCE,
        };
        let (source, proof) = (source_network(from.ip()), ConnectionProof::default());
        let close = CancellationToken::new();
        let mut table = self.table();
        while let Some(id) = victim(&table.entries, source, LIMITS) {
            if let Some(entry) = table.entries.remove(&id) {
                tracing::debug!(source = %entry.source, "closing a connection in favor of a newer one");
                entry.close.cancel();
            }
        }
        let id = table.next;
        table.next += 1;
        let entry = Entry {
            source,
            proof: proof.clone(),
            close: close.clone(),
        };
        table.entries.insert(id, entry);
        drop(table);
        Place {
            table: self.clone(),
            id,
            proof,
            close,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.table().entries.remove(&self.id);
    }
}

/// The connection to close before another one from `source` is admitted; `None` if no limit is exceeded. Smaller ids are
/// older.
fn victim(entries: &BTreeMap<u64, Entry>, source: IpAddr, limits: Limits) -> Option<u64> {
    let mut counts: HashMap<Holder, (usize, u64)> = HashMap::new();
    let mut unproven = 0;
    for (id, entry) in entries {
        let holder = entry.holder();
        unproven += usize::from(matches!(holder, Holder::Source(_)));
        counts.entry(holder).or_insert((0, *id)).0 += 1;
    }
    if let Some((count, oldest)) = counts.get(&Holder::Source(source))
        && *count >= limits.unproven_per_source
    {
        return Some(*oldest);
    }
    let full = entries.len() >= limits.total;
    if !full && unproven < limits.unproven {
        return None;
    }
    let most = |proven: bool| {
        counts
            .iter()
            .filter(|(holder, _)| matches!(holder, Holder::Proven(_)) == proven)
            .max_by_key(|(_, (count, oldest))| (*count, std::cmp::Reverse(*oldest)))
            .map(|(_, (_, oldest))| *oldest)
    };
    most(false).or_else(|| most(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        total: 8,
        unproven: 6,
        unproven_per_source: 3,
    };

    fn source(host: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, host])
    }

    /// Connections by age, with their source and their holder, if proven.
    fn table(connections: &[(u8, Option<u64>)]) -> BTreeMap<u64, Entry> {
        let entry = |(host, holder): &(u8, Option<u64>)| {
            let proof = ConnectionProof::default();
            proof.set(*holder);
            Entry {
                source: source(*host),
                proof,
                close: CancellationToken::new(),
            }
        };
        (10..).zip(connections.iter().map(entry)).collect()
    }

    fn choice(connections: &[(u8, Option<u64>)], newcomer: u8) -> Option<u64> {
        victim(&table(connections), source(newcomer), LIMITS)
    }

    #[test]
    fn a_source_at_its_limit_loses_its_oldest_unproven_connection() {
        let one = (1, None);
        assert_eq!(choice(&[], 1), None);
        assert_eq!(choice(&[one, one], 1), None);
        assert_eq!(choice(&[(2, None), one, one, one], 1), Some(11));
        assert_eq!(choice(&[one, one, one], 2), None, "others are admitted");
        let proven = (1, Some(7));
        assert_eq!(choice(&[proven, proven, proven, one], 1), None);
    }

    #[test]
    fn a_new_connection_replaces_one_of_the_source_with_the_most() {
        let full = [
            (9, Some(7)),
            (1, None),
            (2, None),
            (2, None),
            (3, None),
            (2, None),
            (4, None),
        ];
        assert_eq!(choice(&full, 5), Some(12));
        // With equal counts, the oldest connection is closed.
        let equal: Vec<_> = (1..=6).map(|host| (host, None)).collect();
        assert_eq!(choice(&equal, 7), Some(10));
    }

    #[test]
    fn proven_connections_are_closed_last_starting_with_the_largest_holder() {
        let mut full: Vec<_> = [1, 2, 2, 2, 3, 3, 4]
            .map(|holder| (1, Some(holder)))
            .to_vec();
        full.push((8, None));
        assert_eq!(choice(&full, 9), Some(17), "the unproven one");
        full[7] = (8, Some(3));
        assert_eq!(choice(&full, 9), Some(11));
    }

    #[test]
    fn a_flood_never_exceeds_its_limit_and_its_connections_are_closed() {
        let connections = Connections::default();
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        let other = connections.admit(SocketAddr::from(([192, 0, 2, 2], 1)));
        let flood: Vec<_> = (0..1000).map(|_| connections.admit(from)).collect();
        assert_eq!(connections.table().entries.len(), UNPROVEN_PER_SOURCE + 1);
        let closed = flood.iter().filter(|one| one.close.is_cancelled()).count();
        assert_eq!(closed, 1000 - UNPROVEN_PER_SOURCE);
        assert!(!other.close.is_cancelled());
        drop((flood, other));
        assert!(connections.table().entries.is_empty());
    }
}
