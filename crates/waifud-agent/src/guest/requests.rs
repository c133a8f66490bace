//! The distinct requests of one guest, each with a count.

use waifud_types::Timestamp;
use waifud_types::evidence::{REQUESTS_MAX, RequestSeen};

/// Ordered by the time of their last occurrence, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Requests(Vec<RequestSeen>);

impl Requests {
    /// Adds a request. Beyond the limit, the one that was not repeated for the longest time is dropped.
    pub fn add(&mut self, path: String, status: u16, at: Timestamp) {
        let known = self
            .0
            .iter()
            .position(|seen| seen.status == status && seen.path == path);
        let mut seen = match known {
            Some(index) => self.0.remove(index),
            None => RequestSeen {
                path,
                status,
                count: 0,
                at,
            },
        };
        seen.count += 1;
        seen.at = seen.at.max(at);
        self.0.push(seen);
        if self.0.len() > REQUESTS_MAX {
            self.0.remove(0);
        }
    }

    /// Requests at or after this time.
    pub fn since(&self, boot: Timestamp) -> Vec<RequestSeen> {
        let requests = self.0.iter().filter(|seen| seen.at >= boot);
        requests.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn equal_requests_are_counted_and_another_status_is_another_request() {
        let mut requests = Requests::default();
        requests.add("/a".to_owned(), 200, at(1));
        requests.add("/b".to_owned(), 200, at(2));
        requests.add("/a".to_owned(), 200, at(3));
        requests.add("/a".to_owned(), 503, at(4));
        let seen: Vec<_> = requests
            .since(at(0))
            .into_iter()
            .map(|seen| (seen.path, seen.status, seen.count))
            .collect();
        assert_eq!(
            seen,
            [
                ("/b".to_owned(), 200, 1),
                ("/a".to_owned(), 200, 2),
                ("/a".to_owned(), 503, 1)
            ]
        );
        assert_eq!(requests.since(at(3)).len(), 2);
    }

    #[test]
    fn the_requests_of_a_guest_are_bounded() {
        let mut requests = Requests::default();
        for n in 0..1000 {
            requests.add(format!("/{n}"), 404, at(n));
        }
        let seen = requests.since(at(0));
        assert_eq!(seen.len(), REQUESTS_MAX);
        assert_eq!(seen.last().unwrap().path, "/999");
    }
}
