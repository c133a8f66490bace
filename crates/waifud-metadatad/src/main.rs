//! The daemon that faces guests.

fn main() {}
