//! The store's acts. Tests let waifud die around each.

waifud_kit::acts! {
    "waifud":
    /// A group of changes becomes durable. Nobody is answered before.
    COMMIT = "commit";
}
