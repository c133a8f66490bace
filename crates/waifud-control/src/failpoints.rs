//! The failpoints of waifud, in addition to those of its store. Tests kill the process before and after each.

waifud_kit::acts! {
    "waifud":
    /// A request that may change something: before it nothing is changed, after it everything is, but no answer was sent.
    REQUEST = "request";
}
