//! The failpoints of the store. Tests kill waifud before and after each.

waifud_kit::acts! {
    "waifud":
    /// A group of changes becomes durable. Only then are they acknowledged.
    COMMIT = "commit";
}
