//! Blocks of 4 KiB in which two images differ, and writing them.

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use anyhow::Context;
use engine::{io::AlignedBuf, service::shutdown::Shutdown, units::BLOCK_BYTES};
use homeward::lab::check;
use rustix::fs::OFlags;

const BLOCK: usize = BLOCK_BYTES as usize;
const CHUNK: usize = 1 << 20;

/// The numbers of the blocks in which two images of one size differ, in order.
pub fn differing(a: &Path, b: &Path, stop: &Shutdown) -> anyhow::Result<Vec<u64>> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (file_a, file_b) = (open(a)?, open(b)?);
    let bytes = file_a.metadata()?.len();
    let (mut buf_a, mut buf_b) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut found = Vec::new();
    for at in (0..bytes).step_by(CHUNK) {
        check(stop)?;
        let len = (bytes - at).min(CHUNK as u64) as usize;
        file_a.read_exact_at(&mut buf_a[..len], at)?;
        file_b.read_exact_at(&mut buf_b[..len], at)?;
        let pairs = buf_a[..len].chunks(BLOCK).zip(buf_b[..len].chunks(BLOCK));
        let blocks = (at / BLOCK_BYTES..).zip(pairs).filter(|(_, (a, b))| a != b);
        found.extend(blocks.map(|(block, _)| block));
    }
    Ok(found)
}

/// Makes blocks of the device `to` what they are in the image `from`.
pub fn copy(blocks: &[u64], from: &Path, to: &Path, stop: &Shutdown) -> anyhow::Result<()> {
    let source = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let target = Direct::open(to)?;
    let mut buf = AlignedBuf::zeroed(BLOCK);
    for &block in blocks {
        check(stop)?;
        source.read_exact_at(&mut buf, block * BLOCK_BYTES)?;
        target.write(block, &buf)?;
    }
    target.sync()
}

/// A device that is written past the page cache.
pub struct Direct(File);

impl Direct {
    /// Opens it.
    pub fn open(device: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::DIRECT.bits() as i32;
        let file = File::options().write(true).custom_flags(flags).open(device);
        Ok(Self(file.with_context(|| format!("cannot write {}", device.display()))?))
    }

    /// Writes one block.
    pub fn write(&self, block: u64, bytes: &AlignedBuf) -> anyhow::Result<()> {
        Ok(self.0.write_all_at(bytes, block * BLOCK_BYTES)?)
    }

    /// Waits until all of it is on stable storage.
    pub fn sync(&self) -> anyhow::Result<()> {
        Ok(self.0.sync_all()?)
    }
}
