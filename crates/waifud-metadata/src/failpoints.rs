//! metadatad's acts: what it makes durable before it answers. Tests let it die around each.

waifud_kit::acts! {
    "metadatad":
    /// The node's end of the tunnel becomes durable.
    TUNNEL_SAVE = "tunnel.save";
    /// A bundle becomes durable.
    BUNDLE_SAVE = "bundle.save";
    /// A bundle that nobody uses goes.
    BUNDLE_DROP = "bundle.drop";
    /// Whom to serve what becomes durable.
    ASSIGNMENT_SAVE = "assignment.save";
    /// That an instance is served no more becomes durable.
    ASSIGNMENT_DROP = "assignment.drop";
}
