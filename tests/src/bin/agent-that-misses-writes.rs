//! The agent, but one write in 10,000 is never noticed: what a proof must find. Only tests run it.

use std::process::ExitCode;

use agent::tracker::{Tracker, broken::BrokenTracker};

const ONE_IN: u32 = 10_000;

fn main() -> ExitCode {
    agent::command::main(|tracker: Box<dyn Tracker>| {
        Box::new(BrokenTracker::new(tracker, ONE_IN, rand::random()))
    })
}
