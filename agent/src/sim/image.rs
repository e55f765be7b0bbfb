//! Versions of blocks, their history, and which of them a disk may hold at an instant.

use super::BLOCK;

const HALF: usize = BLOCK / 2;

/// The version in a block: how many times it was written.
///
/// # Errors
/// The versions of its halves, if they differ.
pub fn version_at(block: &[u8]) -> Result<u64, (u64, u64)> {
    let (first, second) = (stamp_of(&block[..HALF]), stamp_of(&block[HALF..]));
    if first == second { Ok(first) } else { Err((first, second)) }
}

fn stamp_of(half: &[u8]) -> u64 {
    half.first_chunk().map_or(0, |stamp| u64::from_le_bytes(*stamp))
}

/// Writes a version into half of a block.
pub(super) fn stamp(block: &mut [u8], second_half: bool, version: u64) {
    let half = if second_half { &mut block[HALF..] } else { &mut block[..HALF] };
    half[..8].copy_from_slice(&version.to_le_bytes());
}

/// A write: disk, block, version.
type Written = (usize, u64, u64);

/// What was written when, as far as the last flip is concerned.
#[derive(Clone, Debug)]
pub struct History {
    now: Vec<Vec<Versions>>,
    at_flip: Vec<Vec<Versions>>,
    /// Whether applications held then.
    held: bool,
    /// By disk and block, for each version from 1 on, the write that was acknowledged before it was issued.
    causes: Vec<Vec<Vec<Option<Written>>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Versions {
    acknowledged: u64,
    begun: u64,
}

impl History {
    pub(super) fn new(disks: &[u64]) -> Self {
        let versions: Vec<Vec<Versions>> =
            disks.iter().map(|blocks| vec![Versions::default(); *blocks as usize]).collect();
        let causes = disks.iter().map(|blocks| vec![Vec::new(); *blocks as usize]).collect();
        Self { at_flip: versions.clone(), now: versions, held: false, causes }
    }

    /// A new version of a block is on its way.
    pub(super) fn begin(&mut self, disk: usize, block: u64, cause: Option<Written>) -> u64 {
        self.causes[disk][block as usize].push(cause);
        let versions = &mut self.now[disk][block as usize];
        versions.begun += 1;
        versions.begun
    }

    /// Its writer knows that it is written.
    pub(super) fn acknowledge(&mut self, disk: usize, block: u64, version: u64) {
        self.now[disk][block as usize].acknowledged = version;
    }

    /// This is the instant of a flip.
    pub(super) fn flip(&mut self, held: bool) {
        self.held = held;
        self.at_flip.clone_from(&self.now);
    }

    /// Whether applications held at the flip.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Whether `image` may be the disks at the flip, as a power cut there might have left them: every write
    /// acknowledged before it is in, none issued after it, none torn, no effect without its cause.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, image: &[Vec<u8>]) -> Result<(), String> {
        let mut found: Vec<Vec<u64>> = Vec::new();
        for (disk, bytes) in image.iter().enumerate() {
            let mut versions = Vec::new();
            for (block, bytes) in bytes.chunks(BLOCK).enumerate() {
                let version = version_at(bytes)
                    .map_err(|halves| format!("disk {disk} block {block} is torn: versions {halves:?}"))?;
                let Versions { acknowledged, begun } = self.at_flip[disk][block];
                if version < acknowledged || version > begun {
                    return Err(format!(
                        "disk {disk} block {block} has version {version}, not {acknowledged} (acknowledged) to \
                         {begun} (issued)"
                    ));
                }
                versions.push(version);
            }
            found.push(versions);
        }
        for (disk, versions) in found.iter().enumerate() {
            for (block, version) in versions.iter().enumerate() {
                for cause in self.causes[disk][block][..*version as usize].iter().flatten() {
                    if found[cause.0][cause.1 as usize] < cause.2 {
                        return Err(format!(
                            "disk {disk} block {block} version {version} without its cause {cause:?}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}
