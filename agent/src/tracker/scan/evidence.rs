//! Evidence that nobody wrote to a disk or file between two looks.
//!
//! For a block device: its counters of completed writes and discards, and no write in flight at either look. For a
//! file: its times and size. What is written through a shared memory mapping may show in a file's times late;
//! who maps the file must not write while a point is made.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use super::super::{
    TrackerError,
    block_device::{BlockDevice, read_again},
};

/// Times of files advance in ticks of up to 10 ms: a change within this of the last may leave them as they are.
const TICKS: Duration = Duration::from_millis(25);

/// Where evidence comes from.
#[derive(Debug)]
pub(super) enum Witness {
    File(File),
    Block { device: BlockDevice, stat: File },
}

/// What a look found; equal finds mean that nothing was written in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Evidence(Vec<i64>);

impl Witness {
    pub(super) fn of(path: &Path) -> Result<Self, TrackerError> {
        let open = |path: &Path| File::open(path).map_err(TrackerError::io("open", path));
        Ok(match BlockDevice::find(path)? {
            Some(device) => Self::Block { stat: open(&device.sys("stat"))?, device },
            None => Self::File(open(path)?),
        })
    }

    /// A first look. `None` if something is being written just now.
    pub(super) fn begin(&self, path: &Path) -> Result<Option<Evidence>, TrackerError> {
        match self {
            Self::File(file) => {
                let first = times(file).map_err(TrackerError::io("look at", path))?;
                let changed = SystemTime::UNIX_EPOCH + Duration::new(first.0[2] as u64, first.0[3] as u32);
                let age = SystemTime::now().duration_since(changed).unwrap_or_default();
                if age >= TICKS {
                    return Ok(Some(first));
                }
                thread::sleep(TICKS - age);
                let second = times(file).map_err(TrackerError::io("look at", path))?;
                Ok((second == first).then_some(first))
            }
            Self::Block { device, stat } => {
                // Counters first: a write that completes in between then shows at the next look.
                let counted = counters(stat).map_err(TrackerError::io("read", device.sys("stat")))?;
                Ok(device.is_quiet()?.then_some(counted))
            }
        }
    }

    /// Whether nothing was written since `before`. False when in doubt.
    pub(super) fn still(&self, before: &Evidence) -> bool {
        match self {
            Self::File(file) => times(file).is_ok_and(|now| now == *before),
            Self::Block { device, stat } => {
                device.is_quiet().unwrap_or(false) && counters(stat).is_ok_and(|now| now == *before)
            }
        }
    }

    /// Whether no write is in flight.
    pub(super) fn is_quiet(&self) -> Result<bool, TrackerError> {
        match self {
            Self::File(_) => Ok(true),
            Self::Block { device, .. } => device.is_quiet(),
        }
    }
}

fn times(file: &File) -> io::Result<Evidence> {
    let now = file.metadata()?;
    Ok(Evidence(vec![now.mtime(), now.mtime_nsec(), now.ctime(), now.ctime_nsec(), now.size() as i64]))
}

/// Writes, sectors written, discards, sectors discarded: numbers 5, 7, 12 and 14 of a device's `stat`.
fn counters(stat: &File) -> io::Result<Evidence> {
    let text = read_again(stat)?;
    let numbers: Vec<i64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let wanted = [4, 6, 11, 13].map(|index: usize| numbers.get(index).copied());
    wanted.into_iter().collect::<Option<_>>().map(Evidence).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
