//! A replica whose oldest point lies many before-images back, made through the real one: a disk is filled, then
//! overwritten in epochs, half of it sequentially and half in scattered pieces. What every block held is known.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use engine::{
    extent::Extent,
    frame::{ContentBuilder, DiskInfo, Frame, Packed, Payload, Position, StreamInfo},
    point::{Consistency, Method, Point, PointId},
    service::shutdown::Shutdown,
    units::{BLOCK_BYTES, DiskIndex, StreamId},
};
use homeward::lab::check;
use jiff::Timestamp;
use master_target::{config::Config, replica::Replica};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

/// Its name.
pub const VM: &str = "bench";

/// Epochs after the oldest point.
const EPOCHS: u64 = 8;

/// Blocks that are written together: 16 KiB.
const PIECE_BLOCKS: u64 = 4;
const PIECE: usize = (PIECE_BLOCKS * BLOCK_BYTES) as usize;

/// Pieces in a frame: 1 MiB.
const FRAME_PIECES: usize = 64;

/// Of the scattered pieces one in so many is written in every epoch.
const HOT: u64 = 32;

/// The replica at rest, in a folder of its own that goes with it.
pub struct Images {
    dir: TempDir,
    /// Of the master target.
    pub config: PathBuf,
    /// The point before all overwriting.
    pub oldest: PointId,
    /// Bytes of before-images that lead there: those of the disk.
    pub bytes: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// The last epoch that wrote each piece.
    newest: Vec<u8>,
    noise: Noise,
}

impl Images {
    /// Of a disk of about `bytes` in a new folder in `dir`.
    pub fn make(dir: &Path, bytes: u64, stop: &Shutdown) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("homeward-bench-").tempdir_in(dir)?;
        let config = write_config(dir.path())?;
        let pieces = (bytes / PIECE as u64).next_multiple_of(2 * EPOCHS * FRAME_PIECES as u64);
        let mut images = Self {
            config,
            oldest: PointId(uuid::Uuid::from_u128(1)),
            bytes: pieces * PIECE as u64,
            journal_bytes: 0,
            newest: vec![0; pieces as usize],
            noise: Noise::new(),
            dir,
        };
        let (home, _lock) = Config::load(&images.config)?.open_home()?;
        let disk = DiskInfo { name: "sda".into(), bytes: images.bytes, used_bytes: images.bytes };
        let stream = StreamInfo { id: StreamId::random(), vm: VM.into(), disks: vec![disk] };
        let mut replica = home.admit("bench", &stream)?;
        let mut sender = Sender { stream: stream.id, position: Position::START };
        for (epoch, pieces) in (0..).zip(plan(pieces)) {
            for pieces in pieces.chunks(FRAME_PIECES) {
                check(stop)?;
                pieces.iter().for_each(|&piece| images.newest[piece as usize] = epoch);
                let frame = sender.data(&images.noise, pieces, epoch);
                replica.apply(&[frame], Timestamp::now())?;
            }
            sender.seal(&mut replica, epoch)?;
            // As the service does it in the background.
            while let Some(task) = replica.task() {
                let done = task.run(&mut |_| true)?;
                replica.finish_task(done)?;
            }
        }
        images.journal_bytes = replica.journal_bytes();
        Ok(images)
    }

    /// The folder of journal and disk.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The first piece of the disk, by its offset, that is not as of the oldest point, or the newest.
    pub fn first_difference(&self, oldest: bool, stop: &Shutdown) -> anyhow::Result<Option<u64>> {
        let path = self.flat();
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut found = vec![0; PIECE];
        let mut expected = vec![0; PIECE];
        for (piece, newest) in (0..).zip(&self.newest) {
            check(stop)?;
            file.read_exact_at(&mut found, piece * PIECE as u64)?;
            self.noise.fill(piece, if oldest { 0 } else { *newest }, &mut expected);
            if found != expected {
                return Ok(Some(piece * PIECE as u64));
            }
        }
        Ok(None)
    }

    /// Puts what the kernel has in memory of disk and journal out of it.
    pub fn forget_cached(&self) -> anyhow::Result<()> {
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(file) = File::open(&path) {
                    file.sync_all()?;
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
                }
            }
        }
        Ok(())
    }

    fn flat(&self) -> PathBuf {
        self.dir.path().join(format!("datastore/{VM}/{VM}-flat.vmdk"))
    }
}

/// The pieces that each epoch writes, in order of place, as an agent sends them; the first fills the disk.
fn plan(pieces: u64) -> Vec<Vec<u64>> {
    let mut rng = StdRng::seed_from_u64(1);
    let half = pieces / 2;
    let mut epochs = vec![(0..pieces).collect::<Vec<u64>>()];
    epochs.extend((0..EPOCHS).map(|epoch| (epoch * half / EPOCHS..(epoch + 1) * half / EPOCHS).collect()));
    for piece in half..pieces {
        let one = 1 + rng.random_range(0..EPOCHS as usize);
        let hot = piece % HOT == 0;
        epochs[1..].iter_mut().zip(1..).filter(|(_, epoch)| hot || *epoch == one).for_each(|(written, _)| {
            written.push(piece);
        });
    }
    epochs
}

struct Sender {
    stream: StreamId,
    position: Position,
}

impl Sender {
    fn data(&mut self, noise: &Noise, pieces: &[u64], epoch: u8) -> Frame {
        let mut content = ContentBuilder::default();
        let mut bytes = vec![0; PIECE];
        for &piece in pieces {
            noise.fill(piece, epoch, &mut bytes);
            content.push(Extent::new(piece * PIECE_BLOCKS, PIECE_BLOCKS as u32), Payload::Data(&bytes));
        }
        let extents = content.extents() as u32;
        self.place(Packed::data(DiskIndex(0), &content.finish(), extents, 1))
    }

    fn seal(&mut self, replica: &mut Replica, epoch: u8) -> anyhow::Result<()> {
        let point = Point {
            id: PointId(uuid::Uuid::from_u128(u128::from(epoch) + 1)),
            epoch: self.position.epoch,
            taken_at: Timestamp::now(),
            consistency: Consistency::CrashConsistent,
            method: Method::Barrier,
            barrier_tries: 1,
            window_us: 1,
            residual_bytes: 0,
            frozen_us: 0,
            application: None,
            group: None,
        };
        let frame = self.place(Packed::seal_of(&point));
        replica.apply(&[frame], Timestamp::now())?;
        Ok(())
    }

    fn place(&mut self, packed: Packed) -> Frame {
        let frame = packed.seal(self.stream, &self.position);
        self.position = Position::after(frame.header());
        frame
    }
}

/// Bytes that do not compress, each piece's and epoch's its own.
struct Noise(Vec<u8>);

impl Noise {
    const BYTES: usize = 4 << 20;

    fn new() -> Self {
        let mut bytes = vec![0; Self::BYTES + PIECE];
        StdRng::seed_from_u64(2).fill(&mut bytes[..]);
        Self(bytes)
    }

    fn fill(&self, piece: u64, epoch: u8, bytes: &mut [u8]) {
        let name = piece << 8 | u64::from(epoch);
        let from = name.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 42;
        bytes.copy_from_slice(&self.0[from as usize..][..PIECE]);
        for block in bytes.chunks_mut(BLOCK_BYTES as usize) {
            block[..8].copy_from_slice(&name.to_le_bytes());
        }
    }
}

/// A master target's configuration, as far as commands need it that work without the service.
fn write_config(dir: &Path) -> anyhow::Result<PathBuf> {
    let (datastore, journal) = (dir.join("datastore"), dir.join("journal"));
    fs::create_dir(&datastore)?;
    let text = format!(
        "listen = \"127.0.0.1:0\"\njournal = {journal:?}\nadmin = {admin:?}\n\
         [tls]\nca = \"none\"\ncert = \"none\"\nkey = \"none\"\n\
         [[datastore]]\nname = \"ds\"\npath = {datastore:?}\nkind = \"nfs\"\nreserve_bytes = 0\n\
         [placement]\ndatastore = \"ds\"\n",
        admin = dir.join("admin.sock"),
    );
    let config = dir.join("master-target.toml");
    fs::write(&config, text)?;
    Ok(config)
}
