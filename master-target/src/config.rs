//! The service's configuration file. A commented example is `master-target.toml` in this crate's folder.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use engine::{
    io::{Backend, DirLock, FolderStorage, Storage},
    limits,
    net::{Credentials, Role, TlsFileError, TlsFiles},
    service::{
        config::ConfigError,
        quantity::{Period, Size},
    },
};
use serde::Deserialize;

use crate::{
    datastore::Datastore,
    drill::Drills,
    home::{DeviceTarget, Home, Original, Placement, objection},
    proof::ScrubPlan,
    retention::{Policy, Tier},
};

/// `master-target.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where process servers connect.
    pub listen: String,
    /// Folder of the journals, on a file system of its own.
    pub journal: PathBuf,
    /// The admin socket.
    pub admin: PathBuf,
    /// Where Prometheus metrics are served; loopback only.
    pub metrics: Option<SocketAddr>,
    /// Certificates.
    pub tls: TlsFiles,
    /// Datastores.
    #[serde(default)]
    pub datastore: Vec<Datastore>,
    /// Where disks of new VMs go.
    pub placement: Option<Placement>,
    /// Disks that were at home before.
    #[serde(default)]
    pub original: Vec<Original>,
    /// Disks that go to block devices.
    #[serde(default)]
    pub device: Vec<DeviceTarget>,
    /// What is kept.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// How disks and journal are read again.
    #[serde(default)]
    pub scrub: ScrubConfig,
    /// What drills may use.
    #[serde(default)]
    pub drill: DrillConfig,
}

/// `[scrub]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrubConfig {
    /// Bytes read per second and VM, at most; 0 turns it off.
    pub rate: Size,
    /// Time from one pass to the next.
    pub every: Period,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { rate: Size(16 << 20), every: Period(Duration::from_secs(7 * 24 * 3600)) }
    }
}

impl ScrubConfig {
    /// As the node takes it.
    #[must_use]
    pub fn plan(&self) -> ScrubPlan {
        ScrubPlan { rate: self.rate.0, every: self.every.0 }
    }
}

/// `[drill]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrillConfig {
    /// Folder of what drills write.
    pub folder: PathBuf,
    /// Bytes that each may write.
    pub bytes: Size,
}

impl Default for DrillConfig {
    fn default() -> Self {
        Self { folder: "/var/tmp/homeward-drills".into(), bytes: Size(16 << 30) }
    }
}

/// `[retention]`: what is kept for each VM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Points at most.
    pub points: usize,
    /// Bytes of before-images at most.
    pub bytes: Size,
    /// From what part of them on a warning is given.
    pub warn_percent: u8,
    /// Tiers of all points.
    pub tier: Vec<TierConfig>,
    /// Tiers of those that are application-consistent, besides.
    pub application: Vec<TierConfig>,
}

/// `[[retention.tier]]`: one point in every period, for so long.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierConfig {
    /// Length of a period; every point, if there is none.
    pub every: Option<Period>,
    /// For how long.
    #[serde(rename = "for")]
    pub span: Period,
}

impl TierConfig {
    fn hours(every: Option<u64>, span: u64) -> Self {
        let hours = |hours| Period(Duration::from_secs(hours * 3600));
        Self { every: every.map(hours), span: hours(span) }
    }

    fn tier(&self) -> Tier {
        Tier { every: self.every.map_or(Duration::ZERO, |every| every.0), span: self.span.0 }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            points: 10_000,
            bytes: Size(100 << 30),
            warn_percent: 80,
            tier: vec![
                TierConfig::hours(None, 2),
                TierConfig::hours(Some(1), 24),
                TierConfig::hours(Some(24), 7 * 24),
            ],
            application: vec![TierConfig::hours(None, 24), TierConfig::hours(Some(24), 14 * 24)],
        }
    }
}

impl RetentionConfig {
    /// As the node takes it.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            tiers: self.tier.iter().map(TierConfig::tier).collect(),
            application: self.application.iter().map(TierConfig::tier).collect(),
            points: self.points,
            bytes: self.bytes.0,
            warn_bytes: self.bytes.0 / 100 * u64::from(self.warn_percent),
        }
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=limits::POINTS).contains(&self.points) {
            return Err(format!("retention.points must be 1 to {}", limits::POINTS));
        }
        if !(1..=100).contains(&self.warn_percent) {
            return Err("retention.warn_percent must be 1 to 100".into());
        }
        match self
            .tier
            .iter()
            .chain(&self.application)
            .find(|tier| tier.every.is_some_and(|every| every.0.is_zero()))
        {
            Some(_) => {
                Err("a retention tier's every must not be zero: leave it out to keep every point".into())
            }
            None => Ok(()),
        }
    }
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &std::path::Path) -> Result<Self, ConfigError> {
        let config: Config = engine::service::config::load(path)?;
        let wrong = |message: String| Err(ConfigError::Inconsistent { path: path.to_owned(), message });
        if let Some(placement) = &config.placement
            && !config.datastore.iter().any(|datastore| datastore.name == placement.datastore)
        {
            return wrong(format!(
                "[placement] names datastore {:?}, which no [[datastore]] is",
                placement.datastore
            ));
        }
        if config.placement.is_none() && config.device.is_empty() && config.original.is_empty() {
            return wrong(
                "neither [placement] nor [[original]] nor [[device]]: there is nowhere to write to".into(),
            );
        }
        if let Err(message) = config.check_existing() {
            return wrong(message);
        }
        if let Err(message) = config.retention.check() {
            return wrong(message);
        }
        Ok(config)
    }

    /// Disks that exist: each is named once, and for one disk of a VM only.
    fn check_existing(&self) -> Result<(), String> {
        for (index, original) in self.original.iter().enumerate() {
            let Original { datastore, descriptor, .. } = original;
            if !self.datastore.iter().any(|known| known.name == *datastore) {
                return Err(format!("[[original]] names datastore {datastore:?}, which no [[datastore]] is"));
            }
            if let Some(objection) = objection(descriptor) {
                return Err(format!("[[original]] descriptor {}: {objection}", descriptor.display()));
            }
            let same = |other: &&Original| other.datastore == *datastore && other.descriptor == *descriptor;
            if let Some(other) = self.original[..index].iter().find(same) {
                return Err(format!(
                    "{} on datastore {datastore} is [[original]] of two disks: {} of VM {} and {} of VM {}",
                    descriptor.display(),
                    other.disk,
                    other.vm,
                    original.disk,
                    original.vm
                ));
            }
        }
        let originals = self.original.iter().map(|original| (&original.vm, &original.disk));
        let disks = originals.chain(self.device.iter().map(|device| (&device.vm, &device.disk)));
        let mut named = BTreeSet::new();
        match disks.into_iter().find(|disk| !named.insert(*disk)) {
            None => Ok(()),
            Some((vm, disk)) => {
                Err(format!("disk {disk} of VM {vm} is named twice in [[original]] and [[device]]"))
            }
        }
    }

    /// No drills yet. `credentials` are for clients from other machines.
    pub fn drills(&self, credentials: &Credentials) -> Result<Drills, TlsFileError> {
        let tls = credentials.server(&[Role::Operator])?;
        Ok(Drills::new(self.drill.folder.clone(), self.drill.bytes.0, Some(tls)))
    }

    /// Opens journals and datastores. The lock keeps every other process away from the journals.
    pub fn open_home(&self) -> anyhow::Result<(Home, DirLock)> {
        std::fs::create_dir_all(&self.journal).map_err(|e| {
            anyhow::anyhow!("cannot create the journal folder {}: {e}", self.journal.display())
        })?;
        let lock = DirLock::acquire(&self.journal)?;
        Ok((self.home()?, lock))
    }

    /// Journals and datastores, for looking only: another process may be writing them.
    pub fn home(&self) -> anyhow::Result<Home> {
        let open = |path: &PathBuf| -> anyhow::Result<Arc<dyn Storage>> {
            let storage = FolderStorage::open(path, Backend::Auto)
                .map_err(|e| anyhow::anyhow!("cannot open the folder {}: {e}", path.display()))?;
            Ok(Arc::new(storage))
        };
        let datastores = self.datastore.iter().map(|d| Ok((d.clone(), open(&d.path)?)));
        Ok(Home {
            journal: open(&self.journal)?,
            datastores: datastores.collect::<anyhow::Result<_>>()?,
            placement: self.placement.clone(),
            originals: self.original.clone(),
            devices: self.device.clone(),
            backend: Backend::Auto,
        })
    }
}
