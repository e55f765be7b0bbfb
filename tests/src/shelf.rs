//! The sealed points of a master target that does not run, read from its journal and disks in this process: many
//! of them in the time that a restore of one takes.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    io::{DirLock, Storage, read_exact_at},
    point::PointId,
    units::BLOCK_BYTES,
};
use homeward::lab::Service;
use master_target::{
    config::Config,
    home::Home,
    journal::{JournalError, Logs, State, TargetDisk, View},
    vmdk::adopt,
};

use crate::{ground::Had, stamped::History};

/// The points of one VM.
pub struct Shelf {
    home: Home,
    state: State,
    dir: PathBuf,
    /// Last: keeps the service from starting meanwhile.
    _lock: DirLock,
}

impl Shelf {
    /// Opens the journal of `vm`. The service must not run.
    ///
    /// # Panics
    /// If it cannot be opened.
    #[must_use]
    pub fn open(master_target: &Service, vm: &str) -> Self {
        let (home, lock) = Config::load(master_target.config()).unwrap().open_home().unwrap();
        let states = home.streams().unwrap().into_iter().map(|stream| home.state(stream).unwrap());
        let state = states.into_iter().find(|state| state.stream.vm == vm).unwrap();
        assert!(state.restore.is_none(), "the disks are restored to a point");
        let dir = PathBuf::from(state.stream.id.to_string());
        Self { home, state, dir, _lock: lock }
    }

    /// The layer that a point ends, counted from 1.
    ///
    /// # Panics
    /// If there is no such point.
    #[must_use]
    pub fn layer(&self, point: PointId) -> u64 {
        self.state.point(point).expect("the point is there").layer
    }

    /// Checks that all of `points` are there, and that each is the disks at an instant between the wish for it and its
    /// being had. Reads no log that is older than these.
    ///
    /// # Errors
    /// The first that is not, newest first.
    pub fn check(&self, history: &History, points: &[Had]) -> Result<(), String> {
        let wanted: HashMap<PointId, &Had> = points.iter().map(|had| (had.point.id, had)).collect();
        let ids = wanted.keys().copied().collect();
        self.look(ids, |point, image| {
            let had = wanted[&point];
            history.check(image, had.from..=had.until).map_err(|error| format!("point {point}: {error}"))
        })
    }

    /// Looks at the disks as they were at each of `points`, newest first.
    ///
    /// # Errors
    /// The first that `look` finds, or if a point is missing.
    pub fn look(
        &self,
        mut points: HashSet<PointId>,
        mut look: impl FnMut(PointId, &[Vec<u8>]) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut image = self.newest();
        let logs = Logs::new(Arc::clone(&self.home.journal), &self.dir, self.state.stream.id);
        let mut newer = self.state.open;
        for sealed in self.state.points.values().rev() {
            if points.is_empty() {
                break;
            }
            // Of all that happened later, only what is not undone yet.
            let view = View::between(&logs, &self.state, sealed.layer, newer);
            view.and_then(|view| undo(&view, &mut image)).map_err(|error| error.to_string())?;
            newer = sealed.layer;
            if points.remove(&sealed.point.id) {
                look(sealed.point.id, &image)?;
            }
        }
        if points.is_empty() { Ok(()) } else { Err(format!("points are missing: {points:?}")) }
    }

    fn newest(&self) -> Vec<Vec<u8>> {
        let disks = self.state.stream.disks.iter().zip(&self.state.targets);
        let read = |(info, target): (&engine::frame::DiskInfo, &TargetDisk)| {
            let TargetDisk::Vmdk { datastore, descriptor, .. } = target else {
                panic!("{target:?} is no VMDK")
            };
            let storage = self.home.datastores.iter().find(|(known, _)| known.name == *datastore);
            let storage: &dyn Storage = storage.unwrap().1.as_ref();
            let flat = adopt::open_for_writing(storage, Path::new(descriptor)).unwrap().flat;
            let device = storage.device(&flat).unwrap();
            const CHUNK: u64 = 256 * BLOCK_BYTES;
            let chunks = (0..info.bytes).step_by(CHUNK as usize);
            chunks
                .flat_map(|at| {
                    read_exact_at(&*device, at, CHUNK.min(info.bytes - at) as usize).unwrap().to_vec()
                })
                .collect()
        };
        disks.map(read).collect()
    }
}

fn undo(view: &View, image: &mut [Vec<u8>]) -> Result<(), JournalError> {
    for piece in view.pieces() {
        let piece = piece?;
        let content = view.read(&piece)?;
        let bytes = &mut image[usize::from(piece.disk().0)];
        bytes[piece.extent.offset() as usize..][..content.len()].copy_from_slice(&content);
    }
    Ok(())
}
