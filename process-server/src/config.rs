//! The service's configuration file. A commented example is `process-server.toml` in this crate's folder.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use engine::{
    net::TlsFiles,
    service::{
        config::ConfigError,
        quantity::{Rate, Size},
    },
};
use serde::Deserialize;

use crate::{limits, spool::Bounds, throttle};

/// `process-server.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where agents connect.
    pub listen: String,
    /// The master target, `host:port`.
    pub target: String,
    /// Bandwidth limit towards the master target.
    pub rate: Option<Rate>,
    /// The admin socket.
    pub admin: PathBuf,
    /// Where Prometheus metrics are served; loopback only.
    pub metrics: Option<SocketAddr>,
    /// What to log, unless the command line says.
    pub log: Option<String>,
    /// Certificates.
    pub tls: TlsFiles,
    /// The spool.
    pub spool: SpoolConfig,
}

/// `[spool]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpoolConfig {
    /// Its folder.
    pub path: PathBuf,
    /// What all streams may take.
    pub size: Size,
    /// What one stream may take; half of `size` if not said.
    pub per_stream: Option<Size>,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Config = engine::service::config::load(path)?;
        let wrong = |message: String| Err(ConfigError::Inconsistent { path: path.to_owned(), message });
        let SpoolConfig { size, per_stream, .. } = &config.spool;
        let least = Size(limits::SPOOL);
        if per_stream.unwrap_or(least) < least {
            return wrong(format!("spool.per_stream must be at least {least}"));
        }
        if size.0 < 2 * least.0 {
            return wrong(format!("spool.size must be at least {}", Size(2 * least.0)));
        }
        if per_stream.is_some_and(|per_stream| per_stream > *size) {
            return wrong("spool.per_stream must not be more than spool.size".into());
        }
        if config.rate.is_some_and(|rate| rate < throttle::LEAST) {
            return wrong(format!("rate must be at least {}; leave it out for no limit", throttle::LEAST));
        }
        Ok(config)
    }

    /// How much the spool may hold.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        let SpoolConfig { size, per_stream, .. } = &self.spool;
        Bounds::new(size.0, per_stream.map_or(size.0 / 2, |per_stream| per_stream.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../process-server.toml");

    fn read(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path())
    }

    #[test]
    fn the_example_is_right_also_with_every_comment_taken_away() {
        assert!(read(EXAMPLE).unwrap().rate.is_none());
        let all: String = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = read(&all).unwrap();
        assert_eq!(config.rate, Some(Rate(25_000_000)));
        assert_eq!(config.bounds(), Bounds::new(50 << 30, 20 << 30));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        for (from, to, named) in [
            ("\"50GiB\"", "\"1MiB\"", "spool.size"),
            ("# per_stream = \"20GiB\"", "per_stream = \"80GiB\"", "spool.per_stream"),
            ("# per_stream = \"20GiB\"", "per_stream = \"8KiB\"", "spool.per_stream"),
            ("# rate = \"200Mbit/s\"", "rate = \"1kB/s\"", "rate"),
            ("listen =", "lisen =", "lisen"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = read(&EXAMPLE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
