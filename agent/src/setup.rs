//! From the configuration to a running node's parts: state folder, tracker, disks, freezer.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        process::CommandExt,
    },
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use engine::{
    frame::{DiskInfo, StreamInfo},
    io::{
        Access, Backend, Device, DirLock, FolderStorage, Storage, blockdev::DeviceId, open_device,
        write_file_atomically,
    },
    limits,
    net::Backoff,
    point::PointId,
    units::StreamId,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    capture::{
        Clock, Freezer, Source,
        freeze::FileSystemFreezer,
        hooks::{Hook, Hooks},
        mounts::file_systems_on,
        pack::Pool,
        quiesce::Quiescer,
        watchdog::Watchdog,
    },
    config::{self, Application, Config, Disk, TrackerChoice},
    node::Parts,
    tracker::{Continuity, Kind, Tracker, TrackerError, ebpf::EbpfTracker, scan, scan::ScanTracker},
};

/// The hidden command of this program that runs the freeze watchdog.
pub const WATCHDOG_COMMAND: &str = "freeze-watchdog";

/// The hidden command of this program that runs hooks.
pub const HOOKS_COMMAND: &str = "run-hooks";

/// The file in the state folder that says which replication this is.
const STATE: &str = "agent.json";

/// What was made of a configuration.
pub struct Prepared {
    /// For the node.
    pub parts: Parts,
    /// What is replicated.
    pub stream: StreamInfo,
    /// Per disk: `proven`, or why everything on it is sent anew.
    pub continuity: Vec<String>,
    /// Keeps other agents out of the state folder.
    pub lock: DirLock,
}

/// Opens everything. Takes a moment; the disks are tracked when it returns.
///
/// # Errors
/// What cannot be used, and what to do.
pub fn prepare(config: &Config) -> anyhow::Result<Prepared> {
    fs::create_dir_all(&config.state)
        .with_context(|| format!("cannot create the state folder {}", config.state.display()))?;
    let lock = DirLock::acquire(&config.state)?;
    let state: Arc<dyn Storage> = Arc::new(FolderStorage::open(&config.state, Backend::Auto)?);
    let stream = stream_id(&*state, &config.vm)
        .with_context(|| format!("cannot use the state folder {}", config.state.display()))?;

    let (kind, tracker, continuity) = open_tracker(config, stream, &state)?;
    let open = |disk: &Disk| open_device(&disk.device, Access::ReadOnly, Backend::Auto);
    let disks: Vec<Arc<dyn Device>> = config.disk.iter().map(open).collect::<Result<_, _>>()?;
    let info = |(disk, device): (&Disk, &Arc<dyn Device>)| {
        let bytes = device.size();
        DiskInfo {
            name: disk.name.clone(),
            bytes,
            used_bytes: used_bytes(&disk.device).unwrap_or(bytes).min(bytes),
        }
    };
    let info = config.disk.iter().zip(&disks).map(info).collect();
    let parts = Parts {
        source: Source { tracker, disks, clock: Box::new(SystemClock) },
        kind,
        freezer: if kind == Kind::Ebpf { freezer(config) } else { None },
        quiescer: config.application.as_ref().map(|application| hooks(config, application)).transpose()?,
        packer: Box::new(Pool::start(config.threads(), config.compression)?),
        backoff: Backoff::from_entropy(),
        new_id: Box::new(PointId::random),
    };
    let describe = |(disk, continuity): (&Disk, &Continuity)| match continuity {
        Continuity::Proven => "proven".to_owned(),
        Continuity::Lost { reason, .. } => {
            tracing::warn!(disk = disk.name, "the whole disk will be sent: {reason}");
            format!("lost: {reason}")
        }
    };
    let continuity = config.disk.iter().zip(&continuity).map(describe).collect();
    Ok(Prepared {
        parts,
        stream: StreamInfo { id: stream, vm: config.vm.clone(), disks: info },
        continuity,
        lock,
    })
}

/// Ends tracking: the next start sends everything.
///
/// # Errors
/// If the kernel's objects or the files of digests cannot be removed.
pub fn forget(config: &Config) -> anyhow::Result<()> {
    EbpfTracker::forget(&config.tracker_name())?;
    if config.state.exists() {
        scan::forget(&FolderStorage::open(&config.state, Backend::Auto)?)?;
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// 1, the first.
    version: u32,
    stream: StreamId,
    vm: String,
}

/// The identity of this replication: as noted in the state folder, or a new one, noted now.
fn stream_id(storage: &dyn Storage, vm: &str) -> anyhow::Result<StreamId> {
    let path = Path::new(STATE);
    if storage.exists(path)? {
        let file = storage.open(path)?;
        let mut bytes = vec![0; file.len()?.min(limits::CONTROL_BODY as u64) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let state: State = serde_json::from_slice(&bytes)
            .with_context(|| format!("{STATE} is damaged; remove it to begin a new replication"))?;
        anyhow::ensure!(
            state.version == 1,
            "{STATE} is of version {}, written by a newer agent",
            state.version
        );
        anyhow::ensure!(
            state.vm == vm,
            "{STATE} is of VM {:?}, not {vm:?}; use another state folder, or remove it to begin a new replication",
            state.vm
        );
        return Ok(state.stream);
    }
    let state = State { version: 1, stream: StreamId::random(), vm: vm.to_owned() };
    write_file_atomically(storage, path, &serde_json::to_vec(&state)?)?;
    Ok(state.stream)
}

type Opened = (Kind, Box<dyn Tracker>, Vec<Continuity>);

fn open_tracker(config: &Config, stream: StreamId, state: &Arc<dyn Storage>) -> anyhow::Result<Opened> {
    if config.tracker != TrackerChoice::Scan {
        match EbpfTracker::open(&config.tracker_name(), stream, &config.devices()) {
            Ok((tracker, continuity)) => {
                scan::forget(&**state).context("cannot remove the digests of the scan tracker")?;
                return Ok((Kind::Ebpf, Box::new(tracker), continuity));
            }
            Err(error) if config.tracker == TrackerChoice::Auto && is_no_ebpf(&error) => {
                tracing::warn!("using the scan tracker: {:#}", anyhow::Error::new(error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (tracker, continuity) = ScanTracker::open(stream, &config.devices(), state)?;
    Ok((Kind::Scan, Box::new(tracker), continuity))
}

/// Whether eBPF cannot work here at all, as opposed to something being wrong that ought to be mended.
fn is_no_ebpf(error: &TrackerError) -> bool {
    matches!(
        error,
        TrackerError::Unsupported { .. }
            | TrackerError::WrongDevice { .. }
            | TrackerError::TooMuch { .. }
            | TrackerError::Bpf { .. }
    )
}

/// What freezes the disks' file systems; `None`, and a line in the log, if nothing can.
fn freezer(config: &Config) -> Option<Box<dyn Freezer>> {
    let start = || -> anyhow::Result<FileSystemFreezer> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(WATCHDOG_COMMAND);
        let watchdog = Watchdog::start(command)?;
        let disks = config.disk.iter().filter_map(|disk| device_id(&disk.device).transpose());
        let disks = disks.collect::<io::Result<_>>()?;
        Ok(FileSystemFreezer::with_locked_memory(disks, watchdog)?)
    };
    match start() {
        Ok(freezer) => Some(Box::new(freezer)),
        Err(error) => {
            tracing::warn!("very busy disks will have no points, since nothing can be frozen: {error:#}");
            None
        }
    }
}

/// What runs the hooks.
fn hooks(config: &Config, application: &Application) -> anyhow::Result<Box<dyn Quiescer>> {
    let name = std::env::current_exe()?;
    let command = move || {
        // Also when the file has been replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.arg0(&name).arg(HOOKS_COMMAND);
        command
    };
    let hook =
        |hook: &config::Hook| Hook { path: hook.path.clone(), within_ms: hook.timeout.0.as_millis() as u64 };
    let hooks = application.hook.iter().map(hook).collect();
    let hooks = Hooks::start(Box::new(command), config.vm.clone(), hooks);
    Ok(Box::new(hooks.context("cannot start the process that runs hooks")?))
}

fn device_id(path: &Path) -> io::Result<Option<DeviceId>> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.file_type().is_block_device().then(|| DeviceId::from_dev_t(metadata.rdev())))
}

/// Bytes in use by the file systems mounted from a disk; `None` if there are none.
fn used_bytes(device: &Path) -> Option<u64> {
    let mounted = file_systems_on(&[device_id(device).ok()??]).ok()?;
    let used = mounted.iter().filter_map(|one| {
        let found = rustix::fs::statvfs(&one.mount_point).ok()?;
        Some((found.f_blocks - found.f_bfree) * found.f_frsize)
    });
    (!mounted.is_empty()).then(|| used.sum())
}

/// The machine's time.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

/// Sleeping takes about this much longer than asked for; shorter pauses give way to others and look again.
const SLEEP_SLACK: Duration = Duration::from_micros(200);

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn pause(&self, time: Duration) {
        if time > SLEEP_SLACK {
            return thread::sleep(time);
        }
        let until = Instant::now() + time;
        while Instant::now() < until {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::io::sim::SimStorage;

    use super::*;

    #[test]
    fn a_replication_keeps_its_identity_and_belongs_to_one_vm() {
        let storage = SimStorage::new();
        let first = stream_id(&storage, "web").unwrap();
        assert_eq!(stream_id(&storage, "web").unwrap(), first);
        let error = stream_id(&storage, "db").unwrap_err().to_string();
        assert!(error.contains("\"web\"") && error.contains("another state folder"), "{error}");

        write_file_atomically(&storage, Path::new(STATE), b"{").unwrap();
        let error = stream_id(&storage, "web").unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}
