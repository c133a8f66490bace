//! The tree of a YAML document. Nodes are in one list and refer to their children by index, so an alias is the index of its
//! anchor, as in PyYAML.

/// An index in [`Document::nodes`].
pub(crate) type NodeId = usize;

/// A document, composed and checked.
#[derive(Debug, Default)]
pub(crate) struct Document {
    pub(super) nodes: Vec<Node>,
    /// `None` if the text has comments only.
    pub(super) root: Option<NodeId>,
}

/// A value.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// The full tag, for example `tag:yaml.org,2002:str`.
    pub(crate) tag: String,
    /// From 1.
    pub(crate) line: u64,
    /// From 1.
    pub(crate) column: u64,
}

/// The content of a node.
#[derive(Debug)]
pub(crate) enum Kind {
    Scalar(String),
    Sequence(Vec<NodeId>),
    Mapping(Vec<(NodeId, NodeId)>),
}

/// The prefix of the tags that YAML defines.
pub(super) const YAML: &str = "tag:yaml.org,2002:";

impl Document {
    /// The outermost node.
    pub(crate) fn root(&self) -> Option<&Node> {
        self.root.and_then(|id| self.nodes.get(id))
    }

    /// The items of a sequence; none for other nodes.
    pub(crate) fn items<'d>(&'d self, node: &'d Node) -> impl Iterator<Item = &'d Node> {
        let ids: &[NodeId] = match &node.kind {
            Kind::Sequence(ids) => ids,
            Kind::Scalar(_) | Kind::Mapping(_) => &[],
        };
        ids.iter().filter_map(|id| self.nodes.get(*id))
    }

    /// The value of a mapping's key. If a key occurs several times, the last value is used, as in Python.
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
    /// Whether its tag is the YAML tag `name`.
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
