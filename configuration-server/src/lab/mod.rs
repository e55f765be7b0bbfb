//! A whole Homeward on this machine: keys, configuration and the services as processes of their own, for the demo,
//! the whole-system tests and the benches. Linux only.
//!
//! ```no_run
//! use homeward::lab::{Lab, LoopDevice, Options, Tracker, Vm, build_services, is_release};
//!
//! # fn main() -> Result<(), homeward::lab::LabError> {
//! let dir = tempfile::tempdir().unwrap();
//! let disk = LoopDevice::create(&dir.path().join("disk.img"), 1 << 30)?; // or any file, with Tracker::Scan
//! let vm = Vm { disks: vec![disk.path().into()], ..Vm::new("web", Tracker::Ebpf) };
//! let lab = Lab::new(dir.path(), Options { vms: vec![vm], ..Options::new(build_services(is_release())?) })?;
//! lab.start()?;
//! let point = lab.point_now("web")?; // waits for the full copy, too
//! lab.process_server().restart()?; // kill -9
//! lab.restore("web", &point.id.to_string(), |_| {})?;
//! println!("{} holds the disk as it was then", lab.vmdks("web")?[0].flat.display());
//! lab.undo("web", |_| {})?; // replication goes on
//! # Ok(())
//! # }
//! ```
//!
//! Nothing is left behind: services die with the [`Lab`], however it ends, and everything else here ends when it is
//! dropped. Declare what services use (folder, devices, mounts) before the lab, so that it is dropped after it.
//! Every wait has a deadline and heeds [`Options::stop`].
//!
//! Layers: `error`, `process` → `wait`, `layout`, `build` → `tool` → `block`, `service` → `status` → the lab;
//! `image`, `ext4`, `records` and `files` are about contents of disks and know nothing of services.

mod block;
mod build;
mod error;
pub mod ext4;
pub mod files;
pub mod image;
mod layout;
mod process;
pub mod records;
mod service;
mod setup;
mod status;
pub mod tool;
mod wait;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use engine::{
    point::Point,
    service::{
        admin::AdminError,
        progress::Step,
        quantity::{Period, Rate, Size},
        shutdown::Shutdown,
    },
};
use serde_json::json;

pub use self::{
    block::{Frozen, LoopDevice, Mount},
    build::{build_services, is_release},
    error::LabError,
    layout::Layout,
    process::isolate,
    service::{Memory, Service},
    status::{
        AgentStatus, CopyStatus, DiskStatus, Drill, DrillDisk, SealedPoint, TargetStatus, Totals, Vmdk,
    },
    wait::{Look, check, let_pass, wait_until},
};
use self::{
    process::Spawner,
    status::{AgentAnswer, TargetAnswer},
};

/// How long a point may take, from the wish until it is durable.
const POINT: Duration = Duration::from_secs(600);

/// How writes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tracker {
    /// By the kernel; needs root and block devices.
    Ebpf,
    /// By comparing; points only while nobody writes.
    Scan,
}

/// A protected VM, with an agent of its own.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// How its agent finds writes.
    pub tracker: Tracker,
    /// Its disks: devices or, with [`Tracker::Scan`], files. They are named `disk0`, `disk1`, …
    pub disks: Vec<PathBuf>,
    /// Time from one point to the next.
    pub point_interval: Period,
    /// Hooks, for application-consistent points on demand; `None` for no such points.
    pub hooks: Option<Vec<PathBuf>>,
    /// The network namespace in which its agent runs, as a file; `None` for ours.
    pub network: Option<PathBuf>,
}

impl Vm {
    /// One without disks yet, whose points are made on demand only, but for the first.
    #[must_use]
    pub fn new(name: &str, tracker: Tracker) -> Self {
        let point_interval = Period(Duration::from_secs(24 * 3600));
        Self { name: name.into(), tracker, disks: Vec::new(), point_interval, hooks: None, network: None }
    }
}

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the services' binaries; see [`build_services`].
    pub binaries: PathBuf,
    /// The protected VMs.
    pub vms: Vec<Vm>,
    /// The process server's bandwidth limit.
    pub rate: Option<Rate>,
    /// The process server's spool.
    pub spool: Size,
    /// How VMDKs are provisioned: `thin`, `lazily-zeroed` or `eagerly-zeroed`.
    pub provisioning: String,
    /// Disks that are at home already, and are adopted: VM, disk, descriptor below [`Layout::datastore`].
    pub originals: Vec<(String, String, PathBuf)>,
    /// Disks that go to block devices: VM, disk, device.
    pub devices: Vec<(String, String, PathBuf)>,
    /// Points that are kept of each VM.
    pub retention: usize,
    /// The network namespace in which process server and master target run, as a file; `None` for ours.
    pub network: Option<PathBuf>,
    /// What the services log.
    pub log: String,
    /// Ends every wait when it is requested.
    pub stop: Shutdown,
}

impl Options {
    /// The usual ones.
    #[must_use]
    pub fn new(binaries: PathBuf) -> Self {
        Self {
            binaries,
            vms: Vec::new(),
            rate: None,
            spool: Size(256 << 20),
            provisioning: "thin".into(),
            originals: Vec::new(),
            devices: Vec::new(),
            retention: 1440,
            network: None,
            log: "info".into(),
            stop: Shutdown::manual(),
        }
    }
}

/// The services. Dropping it stops them, and ends tracking.
pub struct Lab {
    layout: Layout,
    agents: Vec<Agent>,
    process_server: Service,
    master_target: Service,
    stop: Shutdown,
    /// Last: what it started dies with it.
    _spawner: Arc<Spawner>,
}

struct Agent {
    vm: Vm,
    service: Service,
}

impl Lab {
    /// Makes keys and configurations below the folder `dir`, which must exist. Nothing runs yet.
    ///
    /// # Errors
    /// What cannot be made.
    pub fn new(dir: &Path, options: Options) -> Result<Self, LabError> {
        setup::lab(dir, options)
    }

    /// Starts all services, the master target first.
    ///
    /// # Errors
    /// See [`Service::start`].
    pub fn start(&self) -> Result<(), LabError> {
        self.services().try_for_each(Service::start)
    }

    /// All services, in the order in which they can be started.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        let agents = self.agents.iter().map(|agent| &agent.service);
        [&self.master_target, &self.process_server].into_iter().chain(agents)
    }

    /// The agent of `vm`.
    ///
    /// # Errors
    /// If there is no such VM.
    pub fn agent(&self, vm: &str) -> Result<&Service, LabError> {
        let found = self.agents.iter().find(|agent| agent.vm.name == vm);
        let found = found.ok_or_else(|| LabError::unexpected("lab", format!("there is no VM {vm:?}")));
        Ok(&found?.service)
    }

    /// The process server.
    #[must_use]
    pub fn process_server(&self) -> &Service {
        &self.process_server
    }

    /// The master target.
    #[must_use]
    pub fn master_target(&self) -> &Service {
        &self.master_target
    }

    /// Where everything is.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Waits until a condition holds. It also ends when a service has died.
    ///
    /// # Errors
    /// See [`wait_until`]; [`LabError::Died`].
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Look<T>, LabError>,
    ) -> Result<T, LabError> {
        wait_until(&self.stop, what, limit, || {
            let mut started = self.services().filter(|service| service.pid().is_some());
            started.try_for_each(Service::check_alive)?;
            look()
        })
    }

    /// How an agent stands; as of half a second ago at most.
    ///
    /// # Errors
    /// See [`Service::ask`].
    pub fn agent_status(&self, vm: &str) -> Result<AgentStatus, LabError> {
        let agent = self.agent(vm)?;
        match agent.ask(json!({ "ask": "status" }))? {
            AgentAnswer::Status(status) => Ok(*status),
            other => Err(LabError::unexpected(agent.name(), format!("answered {other:?}"))),
        }
    }

    /// How the master target stands with a VM; `None` until it knows it.
    ///
    /// # Errors
    /// See [`Service::ask`].
    pub fn target_status(&self, vm: &str) -> Result<Option<TargetStatus>, LabError> {
        match self.master_target.ask(json!({ "ask": "status" }))? {
            TargetAnswer::Status(all) => Ok(all.into_iter().find(|status| status.vm == vm)),
            other => Err(LabError::unexpected("master-target", format!("answered {other:?}"))),
        }
    }

    /// Makes a point of what the disks hold from now on, and waits until it can be restored.
    ///
    /// # Errors
    /// If none was made, and why.
    pub fn point_now(&self, vm: &str) -> Result<Point, LabError> {
        self.ask_for_point(vm, false)
    }

    /// Makes a point for which applications hold, and waits until it can be restored. Whether it became
    /// application-consistent, the point says.
    ///
    /// # Errors
    /// If none was made, and why.
    pub fn application_point_now(&self, vm: &str) -> Result<Point, LabError> {
        self.ask_for_point(vm, true)
    }

    fn ask_for_point(&self, vm: &str, application: bool) -> Result<Point, LabError> {
        let agent = self.agent(vm)?;
        match agent.ask(json!({ "ask": "point", "wait": true, "application": application }))? {
            AgentAnswer::Durable(point) => Ok(point),
            other => Err(LabError::unexpected(agent.name(), format!("answered {other:?}"))),
        }
    }

    /// The points of a VM that can be restored, oldest first; none while the master target does not know the VM.
    ///
    /// # Errors
    /// See [`Service::ask`].
    pub fn points(&self, vm: &str) -> Result<Vec<SealedPoint>, LabError> {
        if self.target_status(vm)?.is_none() {
            return Ok(Vec::new());
        }
        match self.master_target.ask(json!({ "ask": "points", "vm": vm }))? {
            TargetAnswer::Points(points) => Ok(points),
            other => Err(LabError::unexpected("master-target", format!("answered {other:?}"))),
        }
    }

    /// Waits until a VM has `count` points.
    ///
    /// # Errors
    /// See [`Self::wait`].
    pub fn wait_for_points(&self, vm: &str, count: usize) -> Result<Vec<SealedPoint>, LabError> {
        self.wait(&format!("{count} points of {vm}"), POINT, || {
            let points = self.points(vm)?;
            if points.len() >= count {
                return Ok(Look::Done(points));
            }
            let status = self.agent_status(vm)?;
            Ok(Look::NotYet(format!("{} points; the agent is {}", points.len(), status.describe())))
        })
    }

    /// Makes a VM's disks what they were at `point`: an id, a time or `latest`. Replication waits until
    /// [`Self::undo`].
    ///
    /// # Errors
    /// See [`Service::ask_with`].
    pub fn restore(&self, vm: &str, point: &str, on_progress: impl FnMut(Step)) -> Result<(), LabError> {
        self.change(json!({ "ask": "restore", "vm": vm, "point": point }), on_progress)
    }

    /// Makes a VM's disks again what they were before [`Self::restore`]; replication goes on.
    ///
    /// # Errors
    /// See [`Service::ask_with`].
    pub fn undo(&self, vm: &str, on_progress: impl FnMut(Step)) -> Result<(), LabError> {
        self.change(json!({ "ask": "undo", "vm": vm }), on_progress)
    }

    /// Serves a VM's disks as they were at `point`, an id, a time or `latest`, on the Unix socket `socket`, which is
    /// made. Ends with the master target at the latest.
    ///
    /// # Errors
    /// See [`Service::ask`].
    pub fn drill(&self, vm: &str, point: &str, socket: &Path, writable: bool) -> Result<Drill, LabError> {
        let place = json!({ "socket": socket });
        self.ask_drill(
            json!({ "ask": "drill", "vm": vm, "point": point, "place": place, "writable": writable }),
        )
    }

    /// Ends a drill; tells how it stood.
    ///
    /// # Errors
    /// See [`Service::ask`].
    pub fn stop_drill(&self, id: u64) -> Result<Drill, LabError> {
        self.ask_drill(json!({ "ask": "stop-drill", "id": id }))
    }

    /// The drills that run.
    ///
    /// # Errors
    /// See [`Service::ask`].
    pub fn drills(&self) -> Result<Vec<Drill>, LabError> {
        match self.master_target.ask(json!({ "ask": "drills" }))? {
            TargetAnswer::Drills(drills) => Ok(drills),
            other => Err(LabError::unexpected("master-target", format!("answered {other:?}"))),
        }
    }

    fn ask_drill(&self, request: serde_json::Value) -> Result<Drill, LabError> {
        match self.master_target.ask(request)? {
            TargetAnswer::Drill(drill) => Ok(drill),
            other => Err(LabError::unexpected("master-target", format!("answered {other:?}"))),
        }
    }

    fn change(&self, request: serde_json::Value, on_progress: impl FnMut(Step)) -> Result<(), LabError> {
        match self.master_target.ask_with(request, on_progress)? {
            TargetAnswer::Restored(_) => Ok(()),
            other => Err(LabError::unexpected("master-target", format!("answered {other:?}"))),
        }
    }

    /// The VMDKs of a VM, in the order of its disks.
    ///
    /// # Errors
    /// If the master target does not know the VM, or keeps a disk on a device.
    pub fn vmdks(&self, vm: &str) -> Result<Vec<Vmdk>, LabError> {
        let status = self.target_status(vm)?;
        let status = status.ok_or_else(|| {
            LabError::unexpected("master-target", format!("no VM {vm:?} is replicated there yet"))
        })?;
        status.targets.iter().map(|target| target.vmdk(&self.layout.datastore())).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for Agent { vm, service } in self.agents.iter().filter(|agent| agent.vm.tracker == Tracker::Ebpf) {
            let stopped = service.stop().map(drop);
            if let Err(error) = stopped.and_then(|()| setup::untrack(service)) {
                tracing::warn!(vm = vm.name, %error, "tracking may go on in the kernel");
            }
        }
    }
}

/// Whether asking failed only because nobody answered: the service is down, or went down meanwhile.
#[must_use]
pub fn is_down(error: &LabError) -> bool {
    let LabError::Admin { source, .. } = error else { return false };
    matches!(source, AdminError::NotRunning { .. } | AdminError::BadAnswer { .. } | AdminError::Io { .. })
}
