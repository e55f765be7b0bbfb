//! Exit codes, the same for every command, and how a failed command says so.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done, and every check held |
//! | 1 | tried and failed |
//! | 2 | wrong arguments (clap's own) |
//! | 3 | the configuration, or a file it names, cannot be used |
//! | 4 | the service is not running, or a peer cannot be reached |
//! | 5 | refused: a precondition does not hold, nothing was changed |
//! | 6 | compared, and something is not as it should be |
//! | 130 | interrupted |

use std::{error::Error, fmt, process::ExitCode};

use serde_json::json;

pub use super::code::Code;
use super::{
    admin::{AdminError, Failure},
    config::ConfigError,
};
use crate::net::{NetError, TlsFileError};

/// Runs a command's body: `fn main() -> ExitCode { exit::run(json, || …) }`. A failure goes to stderr as
/// `error: …` or, with `json`, to stdout as `{"ok":false,"error":"…","code":"refused","exit":5}`, so that what
/// reads the output of `--json` always reads one object.
pub fn run(json: bool, body: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    match body() {
        Ok(()) => Code::Ok.into(),
        Err(error) => {
            let code = code_of(&error);
            if json {
                if !error.is::<Told>() {
                    println!("{}", to_json(&error, code));
                }
            } else {
                eprintln!("error: {}", message_of(&error));
            }
            code.into()
        }
    }
}

/// The whole chain in one line. A cause that the message before it already tells is left out: our own errors
/// end in their source's message.
#[must_use]
pub fn message_of(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// The code of the outermost cause that has one; [`Code::Failed`] if none has.
#[must_use]
pub fn code_of(error: &anyhow::Error) -> Code {
    error.chain().find_map(code_of_cause).unwrap_or_default()
}

fn code_of_cause(cause: &(dyn Error + 'static)) -> Option<Code> {
    if let Some(coded) = cause.downcast_ref::<Coded>() {
        Some(coded.code)
    } else if let Some(told) = cause.downcast_ref::<Told>() {
        Some(told.code)
    } else if let Some(admin) = cause.downcast_ref::<AdminError>() {
        Some(match admin {
            AdminError::NotRunning { .. } => Code::Unreachable,
            AdminError::Failed(failure) => failure.code,
            _ => Code::Failed,
        })
    } else if cause.is::<ConfigError>() || cause.is::<TlsFileError>() {
        Some(Code::Configuration)
    } else if cause.is::<NetError>() {
        Some(Code::Unreachable)
    } else {
        None
    }
}

/// A handler of the admin interface fails as a command would, and the command that asked exits with its code.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure { message: message_of(&error), code: code_of(&error) }
    }
}

fn to_json(error: &anyhow::Error, code: Code) -> serde_json::Value {
    json!({ "ok": false, "error": message_of(error), "code": code, "exit": code as u8 })
}

/// A failure of which the command's JSON has told already: with `json` only the code is left.
#[derive(Debug)]
pub struct Told {
    /// The code.
    pub code: Code,
    /// For people.
    pub message: String,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Told {}

/// Gives an error another code than the one its type has.
pub trait WithCode<T> {
    /// For example `.with_code(Code::Refused)?`.
    ///
    /// # Errors
    /// The error it was called on, with the code.
    fn with_code(self, code: Code) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithCode<T> for Result<T, E> {
    fn with_code(self, code: Code) -> anyhow::Result<T> {
        self.map_err(|error| anyhow::Error::new(Coded { code, error: error.into() }))
    }
}

/// Transparent but for the code.
#[derive(Debug)]
struct Coded {
    code: Code,
    error: anyhow::Error,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Coded {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_outermost_code_wins_and_contexts_keep_it() {
        let plain = || anyhow::anyhow!("disk full");
        assert_eq!(code_of(&plain()), Code::Failed);
        let coded = Err::<(), _>(plain()).with_code(Code::Refused).context("restoring").unwrap_err();
        assert_eq!(code_of(&coded), Code::Refused);
        assert_eq!(message_of(&coded), "restoring: disk full");
    }

    #[test]
    fn typed_errors_have_their_codes() {
        let config = ConfigError::Inconsistent { path: "/x".into(), message: "m".into() };
        assert_eq!(code_of(&config.into()), Code::Configuration);
        let admin = AdminError::NotRunning { path: "/run/x".into() };
        assert_eq!(code_of(&anyhow::Error::from(admin).context("asking")), Code::Unreachable);
    }

    #[test]
    fn a_source_told_already_is_not_told_again() {
        let source = std::io::Error::other("boom");
        let error = ConfigError::Read { path: "/x".into(), source };
        let message = message_of(&error.into());
        assert_eq!(message.matches("boom").count(), 1, "{message}");
    }

    #[test]
    fn json_is_one_object_with_code_and_exit_status() {
        let error = Err::<(), _>(anyhow::anyhow!("no room")).with_code(Code::Refused).unwrap_err();
        assert_eq!(
            to_json(&error, code_of(&error)),
            json!({ "ok": false, "error": "no room", "code": "refused", "exit": 5 })
        );
    }
}
