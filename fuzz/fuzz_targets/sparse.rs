//! Hosted sparse and streamOptimized VMDKs: no bytes make the reader panic, and what it returns is as long as it says.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use master_target::vmdk::sparse::SparseDisk;

/// Grains that are read: of a damaged header's 62 TiB not all.
const GRAINS: u64 = 2048;

fuzz_target!(|bytes: &[u8]| {
    let Ok(disk) = SparseDisk::open(Path::new("disk.vmdk"), bytes) else { return };
    let (all, mut buf) = (disk.capacity().bytes().div_ceil(disk.grain_bytes()), Vec::new());
    for grain in (0..all.min(GRAINS)).chain(all.saturating_sub(GRAINS)..all) {
        if let Ok(Some(data)) = disk.read_grain(grain, &mut buf) {
            let rest = disk.capacity().bytes() - grain * disk.grain_bytes();
            assert_eq!(data.len() as u64, rest.min(disk.grain_bytes()));
        }
    }
});
