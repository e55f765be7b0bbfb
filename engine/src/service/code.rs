//! How a command ended, as a number for the shell and a word for JSON. What they mean stands in [`super::exit`].

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// How a command ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Code {
    /// Done.
    Ok = 0,
    /// Tried and failed.
    #[default]
    Failed = 1,
    /// Wrong arguments.
    Usage = 2,
    /// Unusable configuration.
    Configuration = 3,
    /// Not running or not reachable.
    Unreachable = 4,
    /// A precondition does not hold; nothing was changed.
    Refused = 5,
    /// Compared, and something is not as it should be.
    Different = 6,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        ExitCode::from(code as u8)
    }
}
