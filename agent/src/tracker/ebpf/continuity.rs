//! What can be proven of the sets found at opening, disk by disk. Decides only; changes nothing.

use std::path::PathBuf;

use super::{
    super::{LostReason, TrackerError, block_device::BlockDevice},
    control::Purpose,
    programs,
    set::{Set, record_of},
};

/// The set that may be continued, or why there is none.
pub(super) fn find(dirs: &[PathBuf], purpose: Purpose) -> Result<Result<Set, LostReason>, TrackerError> {
    let mut complete = Vec::new();
    let mut reason = LostReason::New;
    for dir in dirs {
        match Set::open(dir)? {
            None => {}
            Some(Err(why)) => reason = why,
            // An incomplete one was abandoned in the making: the one it was to follow is still there.
            Some(Ok(set)) => complete.extend(set.control.is_complete().then_some(set)),
        }
    }
    let newest = complete.into_iter().max_by_key(|set| set.control.serial());
    let Some(set) = newest else { return Ok(Err(reason)) };
    let found = set.control.purpose();
    Ok(if found.boot != purpose.boot {
        Err(LostReason::Rebooted)
    } else if found.stream != purpose.stream {
        Err(LostReason::OtherStream)
    } else if programs::attached(&set.dir)?.is_none() {
        Err(LostReason::Detached)
    } else {
        Ok(set)
    })
}

/// For each device, the index of the same disk in the set, or why its maps cannot be continued.
pub(super) fn judge(
    set: &Result<Set, LostReason>,
    devices: &[BlockDevice],
) -> Vec<Result<usize, LostReason>> {
    let known = match set {
        Ok(set) => Ok(set.control.disks().unwrap_or_default()),
        Err(reason) => Err(*reason),
    };
    let judge_one = |device: &BlockDevice| {
        let known = known.as_ref().map_err(|reason| *reason)?;
        let now = record_of(device);
        let index = known.iter().position(|disk| disk.id == now.id).ok_or(LostReason::New)?;
        if now.identity.is_none() {
            Err(LostReason::Unidentified)
        } else if known[index].identity != now.identity {
            Err(LostReason::Replaced)
        } else if known[index].bytes != now.bytes {
            Err(LostReason::Resized)
        } else {
            Ok(index)
        }
    };
    devices.iter().map(judge_one).collect()
}
