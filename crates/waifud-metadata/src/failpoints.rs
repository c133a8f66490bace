//! The failpoints of metadatad: its durable changes. Tests kill it before and after each.

waifud_kit::acts! {
    "metadatad":
    /// The configuration of the node's end of the tunnel becomes durable.
    TUNNEL_SAVE = "tunnel.save";
    /// A bundle becomes durable.
    BUNDLE_SAVE = "bundle.save";
    /// An unused bundle is removed.
    BUNDLE_DROP = "bundle.drop";
    /// An assignment becomes durable.
    ASSIGNMENT_SAVE = "assignment.save";
    /// The removal of an assignment becomes durable.
    ASSIGNMENT_DROP = "assignment.drop";
}
