//! A served raw image, and the tools that look at it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use master_target::{
    drill::{Budget, DrillDisk, NbdServer, Overlay, Place, nbd::Export},
    image::Image,
    replica::ReplicaError,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

/// A raw image of data and holes, and a server of it.
pub struct Ground {
    pub server: NbdServer,
    pub budget: Arc<Budget>,
    pub image: PathBuf,
    pub dir: TempDir,
}

impl Ground {
    /// One of `bytes`, whose every other mebibyte is a hole.
    pub fn new(bytes: u64, writable: bool) -> Self {
        Self::at(bytes, writable, |dir| Place::Socket(dir.join("nbd.sock")))
    }

    pub fn at(bytes: u64, writable: bool, place: impl FnOnce(&Path) -> Place) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        make_image(&image, bytes);
        let budget = Budget::new(1 << 30);
        let below = FileImage::open(&image);
        let overlay = writable.then(|| Overlay::create(dir.path(), bytes, Arc::clone(&budget)).unwrap());
        let export = Export { name: "sda".into(), description: "web at noon".into(), bytes, writable };
        let disks = vec![(export, DrillDisk::new(Arc::new(below), overlay))];
        let server = NbdServer::start(&place(dir.path()), disks, None).unwrap();
        Self { server, budget, image, dir }
    }

    pub fn uri(&self) -> String {
        self.server.place().uri("sda")
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

pub fn make_image(path: &Path, bytes: u64) {
    let file = File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let mut data = vec![0; MIB as usize];
    for at in (0..bytes).step_by(2 * MIB as usize) {
        rng.fill(&mut data[..]);
        file.write_all_at(&data[..MIB.min(bytes - at) as usize], at).unwrap();
    }
}

/// Runs a tool, which must succeed; what it says.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{said}{errors}", output.status);
    said
}

/// A raw image in a file, which nobody writes.
struct FileImage {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl FileImage {
    fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let bytes = file.metadata().unwrap().len();
        Self { file, path: path.to_owned(), bytes }
    }

    fn error(&self, action: &'static str, offset: u64, source: io::Error) -> ReplicaError {
        ReplicaError::Disk { action, disk: self.path.display().to_string(), offset, source }
    }

    /// The next data or hole at or after `offset`; the end if there is none.
    fn next(&self, offset: u64, hole: bool) -> Result<u64, ReplicaError> {
        let from = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        match seek(&self.file, from) {
            Ok(at) => Ok(at),
            Err(Errno::NXIO) => Ok(self.bytes),
            Err(error) => Err(self.error("seek", offset, error.into())),
        }
    }
}

impl Image for FileImage {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReplicaError> {
        self.file.read_exact_at(buf, offset).map_err(|e| self.error("read", offset, e))
    }

    fn holes(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ReplicaError> {
        let (mut at, end) = (offset, offset + len);
        let mut parts = Vec::new();
        while at < end {
            let data = self.next(at, false)?.min(end);
            if data > at {
                parts.push((data - at, true));
            }
            let hole = if data < end { self.next(data, true)?.min(end) } else { end };
            if hole > data {
                parts.push((hole - data, false));
            }
            at = hole;
        }
        Ok(parts)
    }
}
