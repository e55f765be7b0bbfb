//! The `homeward-master-target` command.

fn main() {}
