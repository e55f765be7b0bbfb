//! All drills of a master target: begun, listed, stopped.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use engine::{
    net::ServerTls,
    point::{Point, PointId},
    units::DiskIndex,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Budget, DrillDisk, NbdServer, Overlay, OverlayError, Place, limits, nbd::Export};
use crate::image::{PointDisk, PointImage};

/// Why a drill was not begun, or not found. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// As many run as may.
    #[error(
        "{} drills run already, the most there may be: stop one (`drills`, `drill --stop ID`)",
        limits::DRILLS
    )]
    TooMany,
    /// No disk of that name.
    #[error("the VM has no disk {name:?}; it has: {known}")]
    NoSuchDisk {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Somebody else could listen in.
    #[error("{0} is no local address, and there are no keys for TLS: listen on a loopback address")]
    NoTls(String),
    /// The address is taken, or not ours.
    #[error("cannot listen at {at}: {source}; choose another with --listen or --socket")]
    Listen {
        /// Where.
        at: String,
        /// What the system said.
        source: io::Error,
    },
    /// The folder of overlays cannot be used.
    #[error("cannot use {} for what drills write: {source}; see `folder` of [drill]", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No overlay.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// No drill of that number.
    #[error("no drill {0} runs here; list them with `drills`")]
    NoSuchDrill(u64),
}

/// What an operator wants of a drill.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The VM, for people.
    pub vm: String,
    /// Only these disks, in this order; none means all.
    pub disks: Vec<String>,
    /// Where clients connect.
    pub place: Place,
    /// Whether they may write.
    pub writable: bool,
}

/// A disk that is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Served {
    /// Its name, and its export's.
    pub disk: String,
    /// Its size.
    pub bytes: u64,
    /// How NBD clients name it.
    pub uri: String,
}

/// A drill that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DrillStatus {
    /// Its number.
    pub id: u64,
    /// The VM.
    pub vm: String,
    /// The point.
    pub point: PointId,
    /// When the point was taken.
    pub taken_at: Timestamp,
    /// Whether it takes writes.
    pub writable: bool,
    /// Its disks; the first is also the one without a name.
    pub disks: Vec<Served>,
    /// Connected clients.
    pub clients: usize,
    /// Bytes that its overlay takes.
    pub overlay_bytes: u64,
    /// When it began.
    pub started_at: Timestamp,
}

/// The drills of a master target. They end when it is dropped.
pub struct Drills {
    folder: PathBuf,
    bytes: u64,
    tls: Option<ServerTls>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    last: u64,
    drills: BTreeMap<u64, Drill>,
}

struct Drill {
    server: NbdServer,
    budget: Arc<Budget>,
    vm: String,
    point: PointId,
    taken_at: Timestamp,
    writable: bool,
    started_at: Timestamp,
}

impl Drills {
    /// None yet. What each writes goes to `folder`, `bytes` at most; `tls` is demanded of clients that are not local.
    #[must_use]
    pub fn new(folder: PathBuf, bytes: u64, tls: Option<ServerTls>) -> Self {
        Self { folder, bytes, tls, running: Mutex::default() }
    }

    /// Serves the disks of `image`, which are those of `point`.
    pub fn start(&self, image: PointImage, point: &Point, plan: &Plan) -> Result<DrillStatus, DrillError> {
        if self.running().drills.len() >= limits::DRILLS {
            return Err(DrillError::TooMany);
        }
        let tls = match (plan.place.is_local(), &self.tls) {
            (true, _) => None,
            (false, Some(tls)) => Some(tls.clone()),
            (false, None) => return Err(DrillError::NoTls(plan.place.to_string())),
        };
        let budget = Budget::new(self.bytes);
        let disks = self.disks(Arc::new(image), point, plan, &budget)?;
        let server = NbdServer::start(&plan.place, disks, tls)
            .map_err(|source| DrillError::Listen { at: plan.place.to_string(), source })?;
        let drill = Drill {
            server,
            budget,
            vm: plan.vm.clone(),
            point: point.id,
            taken_at: point.taken_at,
            writable: plan.writable,
            started_at: Timestamp::now(),
        };
        let mut running = self.running();
        // Others may have begun meanwhile.
        if running.drills.len() >= limits::DRILLS {
            return Err(DrillError::TooMany);
        }
        running.last += 1;
        let id = running.last;
        let status = drill.status(id);
        running.drills.insert(id, drill);
        tracing::info!(id, vm = plan.vm, point = %point.id, at = %plan.place, "drill began");
        Ok(status)
    }

    /// Those that run.
    #[must_use]
    pub fn list(&self) -> Vec<DrillStatus> {
        self.running().drills.iter().map(|(&id, drill)| drill.status(id)).collect()
    }

    /// Ends one; what was written to it is gone. Blocks until its clients are gone, too.
    pub fn stop(&self, id: u64) -> Result<DrillStatus, DrillError> {
        let drill = self.running().drills.remove(&id).ok_or(DrillError::NoSuchDrill(id))?;
        let status = drill.status(id);
        drop(drill);
        tracing::info!(id, vm = status.vm, "drill ended");
        Ok(status)
    }

    /// Ends all.
    pub fn stop_all(&self) {
        let drills = std::mem::take(&mut self.running().drills);
        drop(drills);
    }

    fn disks(
        &self,
        image: Arc<PointImage>,
        point: &Point,
        plan: &Plan,
        budget: &Arc<Budget>,
    ) -> Result<Vec<(Export, DrillDisk)>, DrillError> {
        let names: Vec<&str> = image.disks().iter().map(|disk| disk.name.as_str()).collect();
        let find = |name: &String| {
            let at = names.iter().position(|known| known == name);
            at.ok_or_else(|| DrillError::NoSuchDisk { name: name.clone(), known: names.join(", ") })
        };
        let wanted = match plan.disks.is_empty() {
            true => (0..names.len()).collect(),
            false => plan.disks.iter().map(find).collect::<Result<Vec<_>, _>>()?,
        };
        if plan.writable {
            let create = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
            create.map_err(|source| DrillError::Folder { path: self.folder.clone(), source })?;
        }
        let serve = |at: usize| {
            let disk = DiskIndex(at as u16);
            let bytes = image.bytes(disk);
            let overlay = match plan.writable {
                true => Some(Overlay::create(&self.folder, bytes, Arc::clone(budget))?),
                false => None,
            };
            let name = names[at].to_owned();
            let description = format!("{} {name} at {} ({})", plan.vm, point.taken_at, point.id);
            let export = Export { name, description, bytes, writable: plan.writable };
            let image = PointDisk { image: Arc::clone(&image), disk };
            Ok((export, DrillDisk::new(Arc::new(image), overlay)))
        };
        wanted.into_iter().map(serve).collect()
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        // Entries come and go as a whole: a panic elsewhere leaves it whole.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drill {
    fn status(&self, id: u64) -> DrillStatus {
        let served = self.server.exports().iter().map(|export| Served {
            disk: export.name.clone(),
            bytes: export.bytes,
            uri: self.server.place().uri(&export.name),
        });
        DrillStatus {
            id,
            vm: self.vm.clone(),
            point: self.point,
            taken_at: self.taken_at,
            writable: self.writable,
            disks: served.collect(),
            clients: self.server.clients(),
            overlay_bytes: self.budget.used(),
            started_at: self.started_at,
        }
    }
}
