//! `homeward-bench`: measures Homeward on this machine.

fn main() {}
