//! Reads a service's one TOML file into its own struct.
//!
//! The struct decides what is allowed: put `#[serde(deny_unknown_fields)]` on it and on every section, so that a
//! misspelt key is an error and not a silent default, and use the types of [`super::quantity`] for values with a
//! unit. Nothing is read from the environment, and nothing is read twice.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use thiserror::Error;

/// Reads the TOML file at `path`.
///
/// # Errors
/// Unreadable, or wrong: with file, line, the line's text (and so the key), and what was expected.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    toml::from_str(&text).map_err(|error| wrong(path, &text, &error))
}

/// A service's configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}; name another file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}:{line}: {message} (in `{text}`)")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// That line.
        text: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// Each value is right, but they do not go together; from the services' own checks.
    #[error("{path}: {message}")]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// What is wrong, which keys, and what would be right.
        message: String,
    },
}

fn wrong(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.as_bytes().iter().take(start).filter(|&&byte| byte == b'\n').count();
    ConfigError::Wrong {
        path: path.into(),
        line: line + 1,
        text: text.lines().nth(line).unwrap_or_default().trim().into(),
        message: error.message().replace('\n', ", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::quantity::{Period, Rate, Size};

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        listen: String,
        spool: Spool,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Spool {
        size: Size,
        every: Period,
        rate: Option<Rate>,
    }

    fn read(text: &str) -> Result<Example, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        load(file.path())
    }

    fn complaint(text: &str) -> (usize, String) {
        match read(text).unwrap_err() {
            error @ ConfigError::Wrong { line, .. } => (line, error.to_string()),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn reads_values_with_units() {
        let config =
            read("listen = 'a:1'\n[spool]\nsize = '64MiB'\nevery = '15min'\nrate = '200Mbit/s'\n").unwrap();
        assert_eq!(config.listen, "a:1");
        assert_eq!(config.spool.size, Size(64 << 20));
        assert_eq!(config.spool.every.0.as_secs(), 900);
        assert_eq!(config.spool.rate, Some(Rate(25_000_000)));
    }

    #[test]
    fn errors_name_line_and_key() {
        let (line, message) = complaint("listen = 'a'\n[spool]\nsizee = '1GiB'\nevery = '5s'\n");
        assert_eq!(line, 3);
        assert!(message.contains("sizee") && message.contains("`size`"), "{message}");

        let (line, message) = complaint("listen = 'a'\n\n[spool]\nsize = '1GiB'\nevery = 'soon'\n");
        assert_eq!(line, 5);
        assert!(message.contains("every = 'soon'") && message.contains("15min"), "{message}");

        let (line, message) = complaint("listen = 'a'\n[spool]\nsize = '1GiB'\n");
        assert_eq!(line, 2);
        assert!(message.contains("`every`"), "{message}");

        assert_eq!(complaint("listen = 'a'\n[spool\n").0, 2);
        assert_eq!(complaint("").0, 1);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Example>(Path::new("/nonexistent/agent.toml")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/agent.toml"), "{error}");
    }
}
