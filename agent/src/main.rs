//! The `homeward-agent` program; see [`agent::command`].

use std::{convert::identity, process::ExitCode};

fn main() -> ExitCode {
    agent::command::main(identity)
}
