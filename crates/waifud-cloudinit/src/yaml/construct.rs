//! Checks that PyYAML's safe constructor can create Python values from a document's nodes (`yaml/constructor.py`).

use super::YamlError;
use super::node::{Document, Kind, Node, NodeId, YAML};
use super::scalars::{is_base64, is_float, is_int, is_timestamp};

/// The maximum number of pairs that merge keys may add.
const MAX_MERGED: usize = 1 << 17;

pub(super) fn check(document: &mut Document) -> Result<(), YamlError> {
    let Some(root) = document.root else {
        return Ok(());
    };
    let mut checker = Checker {
        checked: vec![false; document.nodes.len()],
        nodes: &mut document.nodes,
        merged: 0,
    };
    // A list of remaining nodes instead of recursion, as in PyYAML.
    let mut left = vec![root];
    while let Some(id) = left.pop() {
        checker.node(id, &mut left)?;
    }
    Ok(())
}

struct Checker<'d> {
    nodes: &'d mut Vec<Node>,
    checked: Vec<bool>,
    merged: usize,
}

impl Checker<'_> {
    /// Checks one node, and adds its children to `left`.
    fn node(&mut self, id: NodeId, left: &mut Vec<NodeId>) -> Result<(), YamlError> {
        match self.checked.get_mut(id) {
            None | Some(true) => return Ok(()),
            Some(checked) => *checked = true,
        }
        let Some(node) = self.nodes.get(id) else {
            return Ok(());
        };
        let place = Place::of(node);
        let name = node.tag.strip_prefix(YAML).unwrap_or("").to_owned();
        match name.as_str() {
            "null" | "str" | "python/unicode" => {
                self.scalar(id)?;
            }
            "bool" => {
                let value = self.scalar(id)?.to_lowercase();
                let known = ["yes", "no", "true", "false", "on", "off"];
                place.ensure(known.contains(&value.as_str()), "this is not a boolean")?;
            }
            "int" => place.ensure(is_int(self.scalar(id)?), "this is not an integer")?,
            "float" => place.ensure(is_float(self.scalar(id)?), "this is not a number")?,
            "binary" => place.ensure(is_base64(self.scalar(id)?), "this is not base64")?,
            "timestamp" => {
                // PyYAML examines the node itself there.
                let own = node.text().is_some_and(is_timestamp);
                place.ensure(own, "this date or time does not exist")?;
            }
            "seq" => match &node.kind {
                Kind::Sequence(items) => left.extend(items),
                Kind::Scalar(_) | Kind::Mapping(_) => place.ensure(false, "this is not a list")?,
            },
            "map" | "set" => self.mapping(id, left)?,
            "omap" | "pairs" => self.pairs(id, left)?,
            "merge" => place.ensure(false, "<< is the merge key; as a value, it needs quotes")?,
            "value" => place.ensure(false, "= needs quotes")?,
            _ => place.ensure(false, "cloud-init does not support this tag")?,
        }
        Ok(())
    }

    /// `construct_scalar`: of a mapping, the value of its key `=`.
    fn scalar(&self, id: NodeId) -> Result<&str, YamlError> {
        let mut at = id;
        loop {
            let Some(node) = self.nodes.get(at) else {
                return Ok("");
            };
            match &node.kind {
                Kind::Scalar(text) => return Ok(text),
                Kind::Sequence(_) => {
                    return Err(
                        Place::of(node).refused("this is a list, but its tag requires a scalar")
                    );
                }
                Kind::Mapping(pairs) => {
                    let value = pairs.iter().find(|(key, _)| self.is(*key, "value"));
                    let Some((_, value)) = value else {
                        let reason = "this is a mapping, but its tag requires a scalar";
                        return Err(Place::of(node).refused(reason));
                    };
                    at = *value;
                }
            }
        }
    }

    /// `construct_mapping`, with the pairs of its merge keys.
    fn mapping(&mut self, id: NodeId, left: &mut Vec<NodeId>) -> Result<(), YamlError> {
        self.flatten(id)?;
        let Some(node) = self.nodes.get(id) else {
            return Ok(());
        };
        let Kind::Mapping(pairs) = &node.kind else {
            return Err(Place::of(node).refused("this is not a mapping"));
        };
        let unhashable = ["seq", "map", "set", "omap", "pairs"];
        for (key, value) in pairs {
            if unhashable.iter().any(|name| self.is(*key, name)) {
                let place = self.nodes.get(*key).map_or(Place::of(node), Place::of);
                let reason =
                    "a list or a mapping cannot be a key; {{ }} of a template needs quotes";
                return Err(place.refused(reason));
            }
            left.extend([*key, *value]);
        }
        Ok(())
    }

    /// `flatten_mapping`: replaces merge keys by their pairs, and makes a key `=` a string.
    fn flatten(&mut self, id: NodeId) -> Result<(), YamlError> {
        let Some(Kind::Mapping(pairs)) = self.nodes.get(id).map(|node| &node.kind) else {
            return Ok(());
        };
        if !pairs
            .iter()
            .any(|(key, _)| self.is(*key, "merge") || self.is(*key, "value"))
        {
            return Ok(());
        }
        let mut kept = Vec::new();
        let mut merged = Vec::new();
        for (key, value) in pairs.clone() {
            if self.is(key, "merge") {
                self.merge(value, &mut merged)?;
            } else {
                if self.is(key, "value")
                    && let Some(node) = self.nodes.get_mut(key)
                {
                    node.tag = format!("{YAML}str");
                }
                kept.push((key, value));
            }
        }
        merged.append(&mut kept);
        if let Some(node) = self.nodes.get_mut(id) {
            node.kind = Kind::Mapping(merged);
        }
        Ok(())
    }

    /// The pairs of a merge key: of a mapping, or of a list of mappings of which the first takes precedence.
    fn merge(
        &mut self,
        value: NodeId,
        merged: &mut Vec<(NodeId, NodeId)>,
    ) -> Result<(), YamlError> {
        let Some(node) = self.nodes.get(value) else {
            return Ok(());
        };
        let place = Place::of(node);
        let sources = match &node.kind {
            Kind::Mapping(_) => vec![value],
            Kind::Sequence(items) => items.iter().rev().copied().collect(),
            Kind::Scalar(_) => {
                return Err(place.refused("<< requires a mapping or a list of mappings"));
            }
        };
        for source in sources {
            self.flatten(source)?;
            match self.nodes.get(source).map(|node| &node.kind) {
                Some(Kind::Mapping(pairs)) => merged.extend(pairs),
                _ => return Err(place.refused("<< requires a mapping or a list of mappings")),
            }
            self.merged += merged.len();
            place.ensure(
                self.merged <= MAX_MERGED,
                "its merge keys add more than a hundred thousand values",
            )?;
        }
        Ok(())
    }

    /// `construct_yaml_omap` and `construct_yaml_pairs`: a list of mappings with one key each.
    fn pairs(&mut self, id: NodeId, left: &mut Vec<NodeId>) -> Result<(), YamlError> {
        let Some(node) = self.nodes.get(id) else {
            return Ok(());
        };
        let reason = "its tag requires a list of mappings with one key each";
        let Kind::Sequence(items) = &node.kind else {
            return Err(Place::of(node).refused(reason));
        };
        for item in items {
            match self.nodes.get(*item).map(|node| &node.kind) {
                Some(Kind::Mapping(pairs)) if pairs.len() == 1 => {
                    left.extend(pairs.iter().flat_map(|(key, value)| [*key, *value]));
                }
                _ => return Err(Place::of(node).refused(reason)),
            }
        }
        Ok(())
    }

    fn is(&self, id: NodeId, name: &str) -> bool {
        self.nodes.get(id).is_some_and(|node| node.is(name))
    }
}

/// The position of a node.
#[derive(Clone, Copy)]
struct Place {
    line: u64,
    column: u64,
}

impl Place {
    fn of(node: &Node) -> Self {
        Self {
            line: node.line,
            column: node.column,
        }
    }

    fn refused(self, reason: &'static str) -> YamlError {
        YamlError {
            line: self.line,
            column: self.column,
            reason,
        }
    }

    fn ensure(self, holds: bool, reason: &'static str) -> Result<(), YamlError> {
        if holds {
            Ok(())
        } else {
            Err(self.refused(reason))
        }
    }
}
