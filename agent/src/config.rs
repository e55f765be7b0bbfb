//! The agent's configuration file. A commented example is `agent.toml` in this crate's folder.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use engine::{
    limits,
    net::TlsFiles,
    service::{
        config::ConfigError,
        quantity::{Period, Size},
    },
    units::Digest,
};
use serde::Deserialize;

use crate::capture::level::Compression;

/// Points closer together than this cost more than they are worth.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// `agent.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the protected VM.
    pub vm: String,
    /// Its disks, in the order they keep for ever.
    pub disk: Vec<Disk>,
    /// How writes are found.
    #[serde(default)]
    pub tracker: TrackerChoice,
    /// `host:port` of the process server.
    pub process_server: String,
    /// Folder of the agent's own state, not on a protected disk if that can be.
    pub state: PathBuf,
    /// Time from one recovery point to the next.
    #[serde(default = "default_interval")]
    pub point_interval: Period,
    /// Bytes per second read from the disks, at most, while the master target verifies them.
    #[serde(default = "default_verify_rate")]
    pub verify_rate: Size,
    /// How hard frames are compressed.
    #[serde(default = "default_compression")]
    pub compression: Compression,
    /// Application-consistent points; without this section there are none.
    pub application: Option<Application>,
    /// Threads that compress; by default one for each CPU, at most two.
    pub threads: Option<usize>,
    /// The admin socket.
    pub admin: PathBuf,
    /// Where Prometheus metrics are served; loopback only.
    pub metrics: Option<SocketAddr>,
    /// Certificates.
    pub tls: TlsFiles,
}

/// `[[disk]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its name at home, as `sda`.
    pub name: String,
    /// The device, or with the scan tracker a file.
    pub device: PathBuf,
}

/// `tracker`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrackerChoice {
    /// eBPF where the machine can, else scan.
    #[default]
    Auto,
    /// eBPF, or an error.
    Ebpf,
    /// Scan.
    Scan,
}

/// `[application]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// Time from one application-consistent point to the next.
    #[serde(default = "default_application_interval")]
    pub interval: Period,
    /// Run in this order before a point, in reverse after it. Without any, freezing file systems is all there is to do.
    #[serde(default)]
    pub hook: Vec<Hook>,
}

/// `[[application.hook]]`: a program that is run with `--pre` and with `--post`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// The program.
    pub path: PathBuf,
    /// Each run of it may take so long; then it is killed, with its process group.
    #[serde(default = "default_timeout")]
    pub timeout: Period,
}

fn default_application_interval() -> Period {
    Period(Duration::from_secs(15 * 60))
}

fn default_timeout() -> Period {
    Period(Duration::from_secs(30))
}

fn default_interval() -> Period {
    Period(Duration::from_secs(60))
}

const fn default_verify_rate() -> Size {
    Size(64 << 20)
}

const fn default_compression() -> Compression {
    Compression::Adaptive
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// What is wrong, where, and what would be right.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Config = engine::service::config::load(path)?;
        let wrong = |message: String| Err(ConfigError::Inconsistent { path: path.to_owned(), message });
        if config.disk.is_empty() || config.disk.len() > limits::DISKS_PER_VM {
            return wrong(format!("a VM has 1 to {} [[disk]] sections", limits::DISKS_PER_VM));
        }
        let names = config.disk.iter().map(|disk| &disk.name).chain([&config.vm]);
        if let Some(name) = names.into_iter().find(|name| !is_name(name)) {
            return wrong(format!(
                "{name:?} is no name: use 1 to 63 letters, digits, '.', '_', '-', not starting with '.' or '-'"
            ));
        }
        for (index, disk) in config.disk.iter().enumerate() {
            if let Some(other) = config.disk[..index].iter().find(|other| other.name == disk.name) {
                return wrong(format!("two disks are named {:?}; names must differ", other.name));
            }
        }
        if config.point_interval.0 < SHORTEST_INTERVAL {
            return wrong(format!("point_interval must be at least {}", Period(SHORTEST_INTERVAL)));
        }
        if let Some(Application { interval, hook }) = &config.application {
            if interval.0 < SHORTEST_INTERVAL {
                return wrong(format!("application.interval must be at least {}", Period(SHORTEST_INTERVAL)));
            }
            if hook.len() > limits::HOOKS {
                return wrong(format!(
                    "there can be at most {} [[application.hook]] sections",
                    limits::HOOKS
                ));
            }
            if let Some(Hook { path, .. }) = hook.iter().find(|hook| !hook.path.is_absolute()) {
                return wrong(format!("the hook {} needs its whole path, from /", path.display()));
            }
            if hook.iter().any(|hook| hook.timeout.0.is_zero() || hook.timeout.0 > limits::HOOK) {
                return wrong(format!(
                    "a hook's timeout must be more than 0 and at most {}",
                    Period(limits::HOOK)
                ));
            }
        }
        if config.verify_rate.0 == 0 {
            return wrong("verify_rate must be more than 0".into());
        }
        if config.threads == Some(0) || config.threads.is_some_and(|threads| threads > 64) {
            return wrong("threads must be 1 to 64".into());
        }
        Ok(config)
    }

    /// Threads that compress.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(2)))
    }

    /// Paths of the disks, in order.
    #[must_use]
    pub fn devices(&self) -> Vec<PathBuf> {
        self.disk.iter().map(|disk| disk.device.clone()).collect()
    }

    /// Name under which tracking is pinned in the kernel: of this VM and state folder, so that a test beside a real
    /// agent does not meet it.
    #[must_use]
    pub fn tracker_name(&self) -> String {
        let folder = std::path::absolute(&self.state).unwrap_or_else(|_| self.state.clone());
        let digest = Digest::of(folder.as_os_str().as_encoded_bytes()).to_string();
        let vm: String = self.vm.chars().take(40).map(|c| if c == '.' { '_' } else { c }).collect();
        format!("{vm}-{}", &digest[..8])
    }
}

/// As [`engine::frame::StreamInfo`] wants names; said here, where the file can be named.
fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../agent.toml");
    const SHORT: &str = "vm='v'\nprocess_server='a:1'\nstate='/s'\nadmin='/a'\n[tls]\nca='a'\ncert='b'\nkey='c'\n\
                         [[disk]]\nname='sda'\ndevice='/dev/sda'\n";

    fn load(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_is_right_and_shows_the_defaults() {
        let example = load(EXAMPLE).unwrap();
        let short = load(SHORT).unwrap();
        assert_eq!(example.point_interval, short.point_interval);
        assert_eq!((example.compression, example.tracker), (short.compression, short.tracker));
        assert_eq!(example.disk.len(), 2);
        assert_eq!(short.application, None);
        let least = load(&format!("{SHORT}[application]\n[[application.hook]]\npath='/h'\n")).unwrap();
        let [shown, least] = [example, least].map(|config| config.application.unwrap());
        assert_eq!((shown.interval, shown.hook[0].timeout), (least.interval, least.hook[0].timeout));
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, expected) in [
            ("name = \"sdb\"", "name = \"sda\"", "two disks"),
            ("name = \"sdb\"", "name = \"../sdb\"", "\"../sdb\" is no name"),
            ("point_interval = \"60s\"", "point_interval = \"10ms\"", "at least 1s"),
            ("compression = \"adaptive\"", "compression = 20", "zstd level"),
            ("compression = \"adaptive\"", "compression = \"much\"", "\"adaptive\" or a zstd level"),
            ("interval = \"15min\"", "interval = \"1ms\"", "application.interval must be at least 1s"),
            ("path = \"/etc/homeward/hooks/postgresql\"", "path = \"hook\"", "whole path"),
            ("timeout = \"30s\"", "timeout = \"2h\"", "at most 1h"),
            ("vm = \"web-01\"", "vm = \"\"", "is no name"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = load(&EXAMPLE.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn trackers_of_different_folders_have_different_names() {
        let config = load(EXAMPLE).unwrap();
        let other = Config { state: "/elsewhere".into(), ..config.clone() };
        assert_ne!(config.tracker_name(), other.tracker_name());
        let long = Config { vm: "a.b".repeat(21), ..config };
        assert!(long.tracker_name().len() <= 64 && !long.tracker_name().contains('.'));
    }
}
