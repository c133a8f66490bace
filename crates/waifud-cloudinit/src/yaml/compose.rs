//! Builds nodes from libyaml's events: anchors, aliases, and at most one document.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use libyaml_safer::{Event, EventData, Mark, Parser};

use super::node::{Document, Kind, Node, NodeId};
use super::resolve::resolve;
use super::{YamlError, node, strict};

/// The maximum nesting. Python's recursion limit stops PyYAML at about twice this depth, and the code that merges
/// configuration needs some of it as well.
const MAX_DEPTH: usize = 200;

/// The maximum number of nodes with all aliases expanded, because cloud-init copies shared nodes.
const MAX_EXPANDED: u64 = 1 << 20;

pub(super) fn compose(text: &str) -> Result<Document, YamlError> {
    printable(text)?;
    let last = Cell::new(Mark::default());
    // The parser is safe code, but it panics if a comma follows a tag, which PyYAML refuses as well. Of the state that
    // outlives the panic, only the position is used.
    let composed = catch_unwind(AssertUnwindSafe(|| document(text, &last)));
    let document = composed.unwrap_or_else(|_| {
        Err(at(
            last.get(),
            "invalid YAML; if this is a tag (!), add a space after it",
        ))
    })?;
    not_too_large(&document)?;
    Ok(document)
}

fn document(text: &str, last: &Cell<Mark>) -> Result<Document, YamlError> {
    // The parser panics at a block scalar that ends the text without a newline. A newline does not change the result.
    let text = &format!("{text}\n");
    strict::check(text)?;
    let mut bytes = text.as_bytes();
    let mut parser = Parser::new();
    parser.set_input_string(&mut bytes);
    let mut composer = Composer {
        parser,
        document: Document::default(),
        anchors: HashMap::new(),
        last,
    };
    // The start of the stream.
    composer.next()?;
    let first = composer.next()?;
    if !matches!(first.data, EventData::StreamEnd) {
        let event = composer.next()?;
        let root = composer.node(event, 0)?;
        composer.document.root = Some(root);
        // The end of the document.
        composer.next()?;
        let after = composer.next()?;
        if !matches!(after.data, EventData::StreamEnd) {
            return Err(at(
                after.start_mark,
                "a second document begins here; cloud-init reads only one",
            ));
        }
    }
    Ok(composer.document)
}

struct Composer<'r, 'b> {
    parser: Parser<&'r mut &'b [u8]>,
    document: Document,
    /// `None` while the anchor's own node is being composed.
    anchors: HashMap<String, Option<NodeId>>,
    /// The position of the last event.
    last: &'r Cell<Mark>,
}

impl Composer<'_, '_> {
    fn next(&mut self) -> Result<Event, YamlError> {
        let event = self.parser.parse().map_err(|error| {
            let mark = error.problem_mark().or(error.context_mark());
            at(mark.unwrap_or_default(), error.problem())
        })?;
        self.last.set(event.start_mark);
        Ok(event)
    }

    /// The next event of a sequence or mapping; `None` at its end.
    fn next_in_collection(&mut self) -> Result<Option<Event>, YamlError> {
        let event = self.next()?;
        let ends = matches!(event.data, EventData::SequenceEnd | EventData::MappingEnd);
        Ok((!ends).then_some(event))
    }

    fn node(&mut self, event: Event, depth: usize) -> Result<NodeId, YamlError> {
        let mark = event.start_mark;
        if depth > MAX_DEPTH {
            return Err(at(mark, "the nesting is too deep"));
        }
        match event.data {
            EventData::Alias { anchor } => match self.anchors.get(&anchor) {
                Some(Some(id)) => Ok(*id),
                Some(None) => Err(at(mark, "this alias refers to a value that contains it")),
                None => Err(at(mark, "this alias has no anchor before it")),
            },
            EventData::Scalar {
                anchor,
                tag,
                value,
                plain_implicit,
                ..
            } => {
                self.begin(anchor.as_deref(), mark)?;
                let tag = specific(tag).unwrap_or_else(|| {
                    let name = if plain_implicit {
                        resolve(&value)
                    } else {
                        "str"
                    };
                    format!("{}{name}", node::YAML)
                });
                Ok(self.finish(anchor, Kind::Scalar(value), tag, mark))
            }
            EventData::SequenceStart { anchor, tag, .. } => {
                self.begin(anchor.as_deref(), mark)?;
                let mut items = Vec::new();
                while let Some(event) = self.next_in_collection()? {
                    items.push(self.node(event, depth + 1)?);
                }
                let tag = specific(tag).unwrap_or_else(|| format!("{}seq", node::YAML));
                Ok(self.finish(anchor, Kind::Sequence(items), tag, mark))
            }
            EventData::MappingStart { anchor, tag, .. } => {
                self.begin(anchor.as_deref(), mark)?;
                let mut pairs = Vec::new();
                while let Some(event) = self.next_in_collection()? {
                    let key = self.node(event, depth + 1)?;
                    let event = self.next()?;
                    pairs.push((key, self.node(event, depth + 1)?));
                }
                let tag = specific(tag).unwrap_or_else(|| format!("{}map", node::YAML));
                Ok(self.finish(anchor, Kind::Mapping(pairs), tag, mark))
            }
            EventData::StreamStart { .. }
            | EventData::StreamEnd
            | EventData::DocumentStart { .. }
            | EventData::DocumentEnd { .. }
            | EventData::SequenceEnd
            | EventData::MappingEnd => Err(at(mark, "a value is missing")),
        }
    }

    fn begin(&mut self, anchor: Option<&str>, mark: Mark) -> Result<(), YamlError> {
        let Some(anchor) = anchor else {
            return Ok(());
        };
        match self.anchors.insert(anchor.to_owned(), None) {
            None => Ok(()),
            Some(_) => Err(at(mark, "this anchor's name is used twice")),
        }
    }

    fn finish(&mut self, anchor: Option<String>, kind: Kind, tag: String, mark: Mark) -> NodeId {
        let id = self.document.nodes.len();
        let place = at(mark, "");
        self.document.nodes.push(Node {
            kind,
            tag,
            line: place.line,
            column: place.column,
        });
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, Some(id));
        }
        id
    }
}

/// A tag; `None` for `!` alone, which means the tag that the value would have without it.
fn specific(tag: Option<String>) -> Option<String> {
    tag.filter(|tag| tag != "!")
}

fn at(mark: Mark, reason: &'static str) -> YamlError {
    YamlError {
        line: mark.line + 1,
        column: mark.column + 1,
        reason,
    }
}

/// PyYAML's reader refuses characters outside of YAML 1.1's `c-printable`. A byte order mark inside the text is refused as
/// well, because only libyaml counts it as a column.
fn printable(text: &str) -> Result<(), YamlError> {
    let allowed = |c: char| {
        matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}'
            | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
    };
    let (mut line, mut column) = (1, 1);
    for c in text.chars() {
        let reason = if c == '\u{feff}' {
            "a byte order mark is allowed only at the beginning of a file"
        } else {
            "control characters are not allowed"
        };
        if !allowed(c) {
            return Err(YamlError {
                line,
                column,
                reason,
            });
        }
        if c == '\n' {
            (line, column) = (line + 1, 1);
        } else {
            column += 1;
        }
    }
    Ok(())
}

/// Children precede their parents in the list, so that one pass adds them up.
fn not_too_large(document: &Document) -> Result<(), YamlError> {
    let mut sizes: Vec<u64> = Vec::with_capacity(document.nodes.len());
    for node in &document.nodes {
        let of = |id: &NodeId| sizes.get(*id).copied().unwrap_or(0);
        let below = match &node.kind {
            Kind::Scalar(_) => 0,
            Kind::Sequence(items) => items.iter().map(of).fold(0, u64::saturating_add),
            Kind::Mapping(pairs) => pairs
                .iter()
                .map(|(key, value)| of(key).saturating_add(of(value)))
                .fold(0, u64::saturating_add),
        };
        let size = below.saturating_add(1);
        if size > MAX_EXPANDED {
            return Err(YamlError {
                line: node.line,
                column: node.column,
                reason: "its aliases expand to more than a million values",
            });
        }
        sizes.push(size);
    }
    Ok(())
}
