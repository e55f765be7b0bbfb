//! The `homeward-agent` command.

fn main() {}
