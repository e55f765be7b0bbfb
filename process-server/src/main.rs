//! The `homeward-process-server` command.

fn main() {}
