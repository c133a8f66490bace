//! What a frame or a welcome of waifud changes on the node.

use waifud_types::InstanceId;

/// What a frame affects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Affected {
    None,
    Instances(Vec<InstanceId>),
    /// Everything on the node.
    All,
    /// Everything; the slice is complete from now on.
    Synced,
}

/// What a welcome changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Welcomed {
    /// Nothing.
    Unchanged,
    /// This machine is another node of the same cluster now.
    OtherNode,
    /// waifud's database has another incarnation: deletions are held from now on.
    OtherIncarnation,
}
