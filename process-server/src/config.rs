//! The service's configuration file. A commented example is `process-server.toml` in this crate's folder.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use engine::{
    frame::is_name,
    limits as engine_limits,
    net::TlsFiles,
    service::{
        config::ConfigError,
        quantity::{Period, Rate, Size},
    },
};
use serde::Deserialize;

use crate::{
    group::{self, Partial},
    limits,
    spool::Bounds,
    throttle,
};

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
    /// Groups of VMs that share points.
    #[serde(default)]
    pub group: Vec<GroupConfig>,
}

/// `[[group]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Its name.
    pub name: String,
    /// Names of its VMs, as in their agents' configurations.
    pub vms: Vec<String>,
    /// Time from one common point to the next; on demand only if not said.
    pub interval: Option<Period>,
    /// Whether applications are held for the points of the interval.
    #[serde(default)]
    pub application: bool,
    /// How long a member may take to get ready before it counts as missing.
    #[serde(default = "default_patience")]
    pub patience: Period,
    /// What happens when a member is missing.
    #[serde(default)]
    pub partial: Partial,
}

fn default_patience() -> Period {
    Period(limits::GROUP_PATIENCE)
}

/// Least time between two common points of a group.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// Nobody gets ready faster than this for sure.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);

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
        config
            .check_groups()
            .map_err(|message| ConfigError::Inconsistent { path: path.to_owned(), message })?;
        Ok(config)
    }

    fn check_groups(&self) -> Result<(), String> {
        if self.group.len() > limits::GROUPS {
            return Err(format!("there may be at most {} [[group]] sections", limits::GROUPS));
        }
        let mut of_vm = HashMap::new();
        for (index, GroupConfig { name, vms, interval, patience, .. }) in self.group.iter().enumerate() {
            if !is_name(name) || self.group[..index].iter().any(|other| other.name == *name) {
                return Err(format!(
                    "group {name:?}: names must differ, be of 1 to 63 letters, digits, '.', '_', '-', and begin with \
                     neither '.' nor '-'"
                ));
            }
            if vms.is_empty() || vms.len() > engine_limits::GROUP_MEMBERS {
                return Err(format!("group {name:?} must have 1 to {} vms", engine_limits::GROUP_MEMBERS));
            }
            if interval.is_some_and(|interval| interval.0 < SHORTEST_INTERVAL) {
                return Err(format!(
                    "group {name:?}: interval must be at least {}",
                    Period(SHORTEST_INTERVAL)
                ));
            }
            if !(SHORTEST_PATIENCE..=limits::GROUP_PATIENCE).contains(&patience.0) {
                return Err(format!(
                    "group {name:?}: patience must be from {} to {}",
                    Period(SHORTEST_PATIENCE),
                    Period(limits::GROUP_PATIENCE)
                ));
            }
            for vm in vms {
                if !is_name(vm) {
                    return Err(format!("group {name:?}: {vm:?} is no name of a VM"));
                }
                if let Some(other) = of_vm.insert(vm, name) {
                    return Err(format!(
                        "VM {vm:?} is in groups {other:?} and {name:?}; it can be in one, once"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The groups, for their coordinator.
    #[must_use]
    pub fn groups(&self) -> Vec<group::Settings> {
        let settings = |config: &GroupConfig| group::Settings {
            name: config.name.clone(),
            vms: config.vms.clone(),
            interval: config.interval.map(|interval| interval.0),
            application: config.application,
            patience: config.patience.0,
            partial: config.partial,
        };
        self.group.iter().map(settings).collect()
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
            .map(|line| {
                let setting = |rest: &&str| rest.contains(" = ") || rest.starts_with("[[");
                line.strip_prefix("# ").filter(setting).unwrap_or(line)
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = read(&all).unwrap();
        assert_eq!(config.rate, Some(Rate(25_000_000)));
        assert_eq!(config.bounds(), Bounds::new(50 << 30, 20 << 30));
        let [group] = &config.groups()[..] else { panic!("one group") };
        assert_eq!((group.name.as_str(), group.vms.len(), group.partial), ("shop", 2, Partial::Refuse));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        for (from, to, named) in [
            ("\"50GiB\"", "\"1MiB\"", "spool.size"),
            ("# per_stream = \"20GiB\"", "per_stream = \"80GiB\"", "spool.per_stream"),
            ("# per_stream = \"20GiB\"", "per_stream = \"8KiB\"", "spool.per_stream"),
            ("# rate = \"200Mbit/s\"", "rate = \"1kB/s\"", "rate"),
            ("# [[group]]", "[[group]]\nname = \"a/b\"\nvms = [\"x\"]", "\"a/b\""),
            ("# [[group]]", "[[group]]\nname = \"a\"\nvms = []", "1 to 16 vms"),
            ("# [[group]]", "[[group]]\nname = \"a\"\nvms = [\"x\", \"x\"]", "\"x\" is in groups"),
            ("# [[group]]", "[[group]]\nname = \"a\"\nvms = [\"x\"]\ninterval = \"1ms\"", "interval"),
            ("# [[group]]", "[[group]]\nname = \"a\"\nvms = [\"x\"]\npatience = \"2min\"", "patience"),
            ("listen =", "lisen =", "lisen"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = read(&EXAMPLE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
