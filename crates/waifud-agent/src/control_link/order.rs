//! Numbers the messages to waifud, so that waifud recognizes those that arrive late.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Mutex;

use uuid::Uuid;
use waifud_api::agent::MessageOrder;
use waifud_kit::sync::lock;
use waifud_types::ProcessId;

use crate::interfaces::LinkError;

/// The place of the next message; see [`MessageOrder`].
#[derive(Debug)]
pub struct MessageCounter(Mutex<MessageOrder>);

/// A process without messages.
fn new_process() -> MessageOrder {
    // The keys of a hasher are random.
    let [high, low] = [(); 2].map(|()| RandomState::new().hash_one(()));
    MessageOrder {
        process: ProcessId::from_uuid(Uuid::from_u64_pair(high, low)),
        number: 0,
    }
}

impl Default for MessageCounter {
    fn default() -> Self {
        Self(Mutex::new(new_process()))
    }
}

impl MessageCounter {
    /// The place of a message whose content is determined now.
    pub fn next(&self) -> MessageOrder {
        let mut last = lock(&self.0);
        last.number += 1;
        *last
    }

    /// A message was not delivered. If waifud refused it for the moment, it may take this process for an earlier one, so the
    /// next message has another process id.
    pub fn failed(&self, error: &LinkError) {
        if matches!(error, LinkError::Refused { status: 503, .. }) {
            *lock(&self.0) = new_process();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_within_a_process_and_a_refused_message_begins_another() {
        let counter = MessageCounter::default();
        let [first, second] = [(); 2].map(|()| counter.next());
        assert_eq!(first.process, second.process);
        assert!(first.number < second.number);
        let refused = |status| LinkError::Refused {
            status,
            message: String::new(),
        };
        counter.failed(&refused(422));
        assert_eq!(counter.next().process, first.process);
        counter.failed(&refused(503));
        assert_ne!(counter.next().process, first.process);
        assert_ne!(MessageCounter::default().next().process, first.process);
    }
}
