//! Logs: tracing events to stderr, for people, for journald or as JSON lines.
//!
//! stdout is for results. While file systems are frozen lines wait in memory: [`super::held_log`]. The level comes from `--log`, else `RUST_LOG`, else `info`.

use std::{env, io::IsTerminal};

use rustix::fs::fstat;
use thiserror::Error;
use tracing_subscriber::{EnvFilter, fmt};

use super::held_log::HeldLog;

/// The filter cannot be used, or logging was set up before.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// No tracing filter.
    #[error("{filter:?} is no log filter: {source}; write it like `debug` or `info,engine::net=trace`")]
    Filter {
        /// As given.
        filter: String,
        /// Why.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Called twice.
    #[error("logging is already set up: {0}")]
    Twice(String),
}

/// Sets logging up for the whole process. `filter` is what `--log` gave; `json` is `--log-json`.
///
/// # Errors
/// See [`LoggingError`].
pub fn init(filter: Option<&str>, json: bool) -> Result<(), LoggingError> {
    let filter = filter.map(str::to_owned).or_else(|| env::var(EnvFilter::DEFAULT_ENV).ok());
    let filter = filter.filter(|text| !text.is_empty()).unwrap_or_else(|| "info".into());
    let filter = EnvFilter::try_new(&filter).map_err(|source| LoggingError::Filter { filter, source })?;

    let builder = fmt::Subscriber::builder().with_env_filter(filter).with_writer(|| HeldLog);
    let done = if json {
        tracing::subscriber::set_global_default(builder.json().flatten_event(true).finish())
    } else if stderr_is_journal() {
        // journald has its own clock, and shows escapes as rubbish.
        tracing::subscriber::set_global_default(builder.with_ansi(false).without_time().finish())
    } else {
        let colour = std::io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
        tracing::subscriber::set_global_default(builder.with_ansi(colour).finish())
    };
    done.map_err(|error| LoggingError::Twice(error.to_string()))
}

/// systemd sets `JOURNAL_STREAM` to device and inode of the stream it gave us; a child whose stderr was
/// redirected inherits the variable but not the stream.
fn stderr_is_journal() -> bool {
    let Ok(stat) = fstat(std::io::stderr()) else { return false };
    env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_named() {
        let error = init(Some("engine=loudly"), false).unwrap_err();
        assert!(error.to_string().contains("engine=loudly"), "{error}");
    }
}
