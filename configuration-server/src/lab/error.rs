//! What can go wrong in a lab, told so that one knows what to look at.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use engine::service::{
    admin::AdminError,
    exit::{Code, WithCode},
};
use thiserror::Error;

use crate::pki::PkiError;

/// The lab could not do something.
#[derive(Debug, Error)]
pub enum LabError {
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
    /// The system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// "create", "read", …
        doing: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program is not installed.
    #[error("{program} is needed and was not found; install the package {package}")]
    MissingTool {
        /// Its name.
        program: String,
        /// What to install.
        package: String,
    },
    /// A precondition does not hold; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// A program failed.
    #[error("`{command}` failed ({status}): {output}")]
    Tool {
        /// With its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A service ended although nobody stopped it.
    #[error("{service} ended ({status}); the end of its log {log}:\n{tail}")]
    Died {
        /// Which.
        service: String,
        /// How.
        status: String,
        /// Where it logs.
        log: PathBuf,
        /// The last lines.
        tail: String,
    },
    /// A condition did not come true in time.
    #[error("{what}: not within {} s ({last})", waited.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// What was seen last.
        last: String,
    },
    /// A service refused, or could not be asked.
    #[error("{service}: {source}")]
    Admin {
        /// Which.
        service: String,
        /// Why.
        source: AdminError,
    },
    /// A service says something that it should not.
    #[error("{service}: {what}")]
    Unexpected {
        /// Which.
        service: String,
        /// What is wrong with it.
        what: String,
    },
    /// Keys could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

impl LabError {
    /// For `map_err`: the system refused to do `doing` with `path`.
    pub fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.as_ref().into(), source }
    }

    /// Something else than expected from `service`.
    pub(super) fn unexpected(service: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Unexpected { service: service.into(), what: what.into() }
    }

    /// As a command's error, with the exit code that suits.
    #[must_use]
    pub fn into_command_error(self) -> anyhow::Error {
        let code = match &self {
            Self::Interrupted => Code::Interrupted,
            Self::MissingTool { .. } | Self::Refused(_) => Code::Refused,
            _ => return self.into(),
        };
        let Err(error) = Err::<std::convert::Infallible, _>(self).with_code(code);
        error
    }
}
