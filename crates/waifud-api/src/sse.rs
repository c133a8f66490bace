//! Reads server-sent events (WHATWG HTML, section 9.2) from pieces of a byte stream.

/// One event of a stream.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SseEvent {
    /// The event's type; `message` when the stream names none.
    pub event: String,
    /// Its lines of data, joined by newlines.
    pub data: String,
    /// Its id: the revision to resume from.
    pub id: Option<String>,
}

/// Puts lines together that arrive in pieces. Comments and `retry` are passed over.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    event: String,
    data: Option<String>,
    id: Option<String>,
}

impl SseParser {
    /// Takes the next bytes and returns the events that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(&line);
            if let Some(event) = self.end_line(line.trim_end_matches('\r')) {
                events.push(event);
            }
        }
        events
    }

    fn end_line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let data = self.data.take()?;
            let event = if event.is_empty() {
                "message".to_owned()
            } else {
                event
            };
            return Some(SseEvent {
                event,
                data,
                id: self.id.clone(),
            });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "id" => self.id = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = ": hello\n\nid: 0000000a.1\nevent: instance.created\ndata: {\"a\":1}\n\ndata: x\ndata: y\r\n\r\n";

    fn expected() -> Vec<SseEvent> {
        vec![
            SseEvent {
                event: "instance.created".into(),
                data: "{\"a\":1}".into(),
                id: Some("0000000a.1".into()),
            },
            SseEvent {
                event: "message".into(),
                data: "x\ny".into(),
                id: Some("0000000a.1".into()),
            },
        ]
    }

    proptest! {
        #[test]
        fn pieces_of_any_length_give_the_same_events(cut in 0_usize..STREAM.len()) {
            let mut parser = SseParser::default();
            let (head, tail) = STREAM.as_bytes().split_at(cut);
            let mut events = parser.push(head);
            events.extend(parser.push(tail));
            prop_assert_eq!(events, expected());
        }
    }
}
