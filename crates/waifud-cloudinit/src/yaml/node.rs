//! The tree of a YAML document. Nodes lie in one list and name their children by index, so that an alias is its anchor's
//! index, as in PyYAML.

/// A node's place in [`Document::nodes`].
pub(crate) type NodeId = usize;

/// A document, composed and checked.
#[derive(Debug, Default)]
pub(crate) struct Document {
    pub(super) nodes: Vec<Node>,
    /// Absent when the text has comments only.
    pub(super) root: Option<NodeId>,
}

/// One value.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// In full, such as `tag:yaml.org,2002:str`.
    pub(crate) tag: String,
    /// From 1.
    pub(crate) line: u64,
    /// From 1.
    pub(crate) column: u64,
}

/// What a node holds.
#[derive(Debug)]
pub(crate) enum Kind {
    Scalar(String),
    Sequence(Vec<NodeId>),
    Mapping(Vec<(NodeId, NodeId)>),
}

/// The prefix of YAML's own tags.
pub(super) const YAML: &str = "tag:yaml.org,2002:";

impl Document {
    /// The outermost node.
    pub(crate) fn root(&self) -> Option<&Node> {
        self.root.and_then(|id| self.nodes.get(id))
    }

    /// A sequence's children; nothing for other nodes.
    pub(crate) fn items<'d>(&'d self, node: &'d Node) -> impl Iterator<Item = &'d Node> {
        let ids: &[NodeId] = match &node.kind {
            Kind::Sequence(ids) => ids,
            Kind::Scalar(_) | Kind::Mapping(_) => &[],
        };
        ids.iter().filter_map(|id| self.nodes.get(*id))
    }

    /// The value of a mapping's key; of a key that is there twice the last one counts, as in Python.
    pub(crate) fn get<'d>(&'d self, node: &'d Node, key: &str) -> Option<&'d Node> {
        let Kind::Mapping(pairs) = &node.kind else {
            return None;
        };
        let is_it = |id: &NodeId| {
            self.nodes.get(*id).is_some_and(
                |node| matches!(&node.kind, Kind::Scalar(text) if text == key && node.is("str")),
            )
        };
        let (_, value) = pairs.iter().rfind(|(name, _)| is_it(name))?;
        self.nodes.get(*value)
    }
}

impl Node {
    /// Whether its tag is YAML's `name`.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.tag.strip_prefix(YAML) == Some(name)
    }

    /// The text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar(text) => Some(text),
            Kind::Sequence(_) | Kind::Mapping(_) => None,
        }
    }
}
