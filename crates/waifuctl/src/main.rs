//! The command line: the whole product from a terminal.

fn main() {}
