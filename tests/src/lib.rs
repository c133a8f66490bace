//! End-to-end suites: the real programs on real parts.
