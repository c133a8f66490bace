//! waifud's acts beside its store's. Tests let it die around each.

waifud_kit::acts! {
    "waifud":
    /// A request that may change something is carried out: before it nothing of it is, after it everything is, and nobody was answered.
    REQUEST = "request";
}
