use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    sync::atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;
use tempfile::{NamedTempFile, TempDir};

use super::*;
use crate::{
    io::{
        AlignedBuf, DeadHandle, OpKind, read_exact_at,
        testing::{LoopDevice, is_root, refuse_io_uring, run},
        write_all_at,
    },
    limits::{IO_DEPTH, IO_FLIGHT_BYTES},
};

const BACKENDS: [Backend; 2] = [Backend::Uring, Backend::Threads];

/// Runs `ops` and returns them in the order of their tags, checking that each completes once.
fn run_all(device: &dyn Device, ops: Vec<Op>) -> Vec<(Op, io::Result<()>)> {
    let tags: Vec<u64> = ops.iter().map(|op| op.tag).collect();
    let mut completed = Vec::new();
    device.run(&mut ops.into_iter(), &mut |op, result| completed.push((op, result)));
    completed.sort_by_key(|(op, _)| op.tag);
    assert_eq!(completed.iter().map(|(op, _)| op.tag).collect::<Vec<_>>(), tags);
    completed
}

/// What one operation of a round does to its stretch of the disk: kind, length in sectors, fill.
type Step = (OpKind, u64, u8);

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let kind = prop_oneof![Just(OpKind::Read), Just(OpKind::Write), Just(OpKind::Zero)];
    let step = (kind, prop_oneof![1u64..20, Just(8), Just(128)], any::<u8>());
    prop::collection::vec(prop::collection::vec(step, 0..60), 1..5)
}

/// Runs rounds of operations side by side on neighbouring stretches, the last of which ends with the disk, and
/// compares with a model of the bytes.
fn behaves_like_bytes(device: &dyn Device, model: &mut [u8], rounds: &[Vec<Step>]) {
    for round in rounds {
        let mut offset = 0;
        let mut ops = Vec::new();
        for &(kind, sectors, fill) in round {
            let len = (sectors * 512).min(model.len() as u64 - offset);
            let stretch = offset as usize..(offset + len) as usize;
            let tag = ops.len() as u64;
            ops.push(match kind {
                OpKind::Read => Op::read(offset, len as usize, tag),
                OpKind::Write => {
                    let bytes: Vec<u8> = (0..len).map(|i| fill.wrapping_add((i / 512) as u8)).collect();
                    model[stretch].copy_from_slice(&bytes);
                    Op::write(offset, AlignedBuf::copy_of(&bytes), tag)
                }
                OpKind::Zero => {
                    model[stretch].fill(0);
                    Op::zero(offset, len, tag)
                }
            });
            offset += len;
        }
        for (op, result) in run_all(device, ops) {
            result.unwrap();
            if op.kind == OpKind::Read {
                assert_eq!(op.buf[..], model[op.offset as usize..][..op.len as usize], "at {}", op.offset);
            }
        }
    }
    assert_eq!(read_exact_at(device, 0, model.len()).unwrap()[..], *model);
    device.sync().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn files_of_any_size_behave_like_bytes(size in 0usize..300_000, rounds in steps()) {
        for backend in BACKENDS {
            let file = NamedTempFile::new().unwrap();
            let mut model = vec![0xA5; size];
            fs::write(file.path(), &model).unwrap();
            let device = open_device(file.path(), Access::ReadWrite, backend).unwrap();
            prop_assert_eq!(device.size(), size as u64);
            behaves_like_bytes(&*device, &mut model, &rounds);
            prop_assert!(fs::read(file.path()).unwrap() == model, "the file differs from the model");
        }
    }

    #[test]
    fn buffered_files_behave_like_bytes(size in 0usize..100_000, rounds in steps()) {
        for backend in BACKENDS {
            let file = NamedTempFile::new().unwrap();
            let mut model = vec![0xA5; size];
            fs::write(file.path(), &model).unwrap();
            let mut disk = DiskFile::open(file.path(), true).unwrap();
            disk.direct = None;
            behaves_like_bytes(&Disk::new(disk, backend).unwrap(), &mut model, &rounds);
            prop_assert!(fs::read(file.path()).unwrap() == model, "the file differs from the model");
        }
    }
}

#[test]
fn loop_devices_behave_like_bytes() {
    const SIZE: usize = 300 * 512; // No multiple of 4 KiB.
    let Some(disk) = LoopDevice::over(&[0xA5; SIZE]) else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(16));
    let rounds = steps();
    runner
        .run(&rounds, |rounds| {
            for backend in BACKENDS {
                let mut model = vec![0xA5; SIZE];
                let device = open_device(disk.path(), Access::ReadWrite, backend).unwrap();
                assert_eq!(device.size(), SIZE as u64);
                write_all_at(&*device, 0, &model).unwrap();
                behaves_like_bytes(&*device, &mut model, &rounds);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn several_threads_may_run_at_once() {
    const THREADS: u64 = 4;
    const BYTES: u64 = 2 << 20;
    for backend in BACKENDS {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(THREADS * BYTES).unwrap();
        let device = open_device(file.path(), Access::ReadWrite, backend).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let device = &device;
                scope.spawn(move || {
                    let offsets = || (thread * BYTES..(thread + 1) * BYTES).step_by(4096);
                    let fill = |offset: u64| [(offset / 4096) as u8 ^ thread as u8; 4096];
                    let writes =
                        offsets().map(|at| Op::write(at, AlignedBuf::copy_of(&fill(at)), at)).collect();
                    assert!(run_all(&**device, writes).iter().all(|(_, result)| result.is_ok()));
                    let reads = offsets().map(|at| Op::read(at, 4096, at)).collect();
                    for (op, result) in run_all(&**device, reads) {
                        result.unwrap();
                        assert_eq!(op.buf[..], fill(op.offset));
                    }
                });
            }
        });
    }
}

#[test]
fn operations_are_drawn_only_when_there_is_room() {
    for backend in BACKENDS {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let device = open_device(file.path(), Access::ReadOnly, backend).unwrap();
        for (len, room) in [(4096, IO_DEPTH), (1 << 20, (IO_FLIGHT_BYTES >> 20) as usize)] {
            let drawn = AtomicUsize::new(0);
            let mut completed = 0;
            let mut ops = (0..1000).map(|tag| {
                drawn.fetch_add(1, Ordering::Relaxed);
                Op::read(tag % 64 * len as u64, len, tag)
            });
            device.run(&mut ops, &mut |_, result| {
                result.unwrap();
                assert!(drawn.load(Ordering::Relaxed) - completed <= room);
                completed += 1;
            });
            assert_eq!(completed, 1000);
        }
    }
}

#[test]
fn a_bad_operation_fails_alone() {
    for backend in BACKENDS {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(10_000).unwrap();
        let device = open_device(file.path(), Access::ReadWrite, backend).unwrap();
        let mut wrong_length = Op::read(0, 512, 3);
        wrong_length.len = 1024;
        let ops = vec![
            Op::read(0, 4096, 0),
            Op::read(8192, 4096, 1),
            Op::zero(u64::MAX, 2, 2),
            wrong_length,
            Op::read(8192, 10_000 - 8192, 4),
            Op::read(10_000, 0, 5),
        ];
        let good: Vec<bool> = run_all(&*device, ops).iter().map(|(_, result)| result.is_ok()).collect();
        assert_eq!(good, [true, false, false, false, true, true]);
    }
}

#[test]
fn a_disk_that_shrank_is_an_error_and_not_a_short_read() {
    for backend in BACKENDS {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(3 * 4096).unwrap();
        let device = open_device(file.path(), Access::ReadOnly, backend).unwrap();
        file.as_file().set_len(4096 + 100).unwrap();
        let results =
            run_all(&*device, vec![Op::read(0, 4096, 0), Op::read(0, 3 * 4096, 1), Op::read(8192, 4096, 2)]);
        let kinds: Vec<_> =
            results.iter().map(|(_, result)| result.as_ref().map_err(io::Error::kind)).collect();
        assert_eq!(kinds, [Ok(&()), Err(io::ErrorKind::UnexpectedEof), Err(io::ErrorKind::UnexpectedEof)]);
    }
}

#[test]
fn a_read_only_device_cannot_write() {
    for backend in BACKENDS {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), [7; 8192]).unwrap();
        let device = open_device(file.path(), Access::ReadOnly, backend).unwrap();
        let ops = vec![Op::write(0, AlignedBuf::zeroed(4096), 0), Op::zero(0, 4096, 1), Op::read(0, 4096, 2)];
        let results = run_all(&*device, ops);
        let refused = |i: usize| results[i].1.as_ref().unwrap_err().kind();
        assert_eq!([refused(0), refused(1)], [io::ErrorKind::PermissionDenied; 2]);
        assert_eq!(results[2].0.buf[..], [7; 4096]);
        assert_eq!(fs::read(file.path()).unwrap(), [7; 8192]);

        let disk = DiskFile::open(file.path(), false).unwrap();
        let direct = disk.direct.as_ref().map(|direct| &direct.file);
        for file in [Some(&disk.buffered), direct].into_iter().flatten() {
            assert!(file.write_at(&[0], 0).is_err(), "the descriptor itself must be read-only");
        }
    }
}

#[test]
fn files_are_read_past_the_page_cache() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let disk = DiskFile::open(file.path(), false).unwrap();
    let Some(direct) = &disk.direct else {
        println!("skipped: the file system of temporary files has no direct I/O");
        return;
    };
    let flags = rustix::fs::fcntl_getfl(&direct.file).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::DIRECT));
    assert!(disk.can_be_direct(0, 4096, 0));
    assert!(!disk.can_be_direct(0, 4096, 100));
    assert!(!disk.can_be_direct(100, 4096, 0));
}

/// Direct and buffered operations on neighbouring sectors of one page once failed the next sync with EIO.
#[test]
fn neighbours_within_a_page_do_not_fail_the_sync() {
    for backend in BACKENDS {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(4 << 20).unwrap();
        let device = open_device(file.path(), Access::ReadWrite, backend).unwrap();
        for round in 0..20 {
            let op = |n: u64| match n % 3 {
                0 => Op::zero(n * 1536, 1536, n),
                _ => Op::write(n * 1536, AlignedBuf::copy_of(&[round; 1536]), n),
            };
            assert!(run_all(&*device, (0..2000).map(op).collect()).iter().all(|(_, result)| result.is_ok()));
            device.sync().unwrap();
        }
    }
}

#[test]
fn zeroing_a_file_makes_a_hole() {
    for backend in BACKENDS {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![7; 1 << 20]).unwrap();
        let device = open_device(file.path(), Access::ReadWrite, backend).unwrap();
        device.sync().unwrap();
        let before = file.as_file().metadata().unwrap().blocks();
        let results = run_all(&*device, vec![Op::zero(0, 512 << 10, 0), Op::zero(512 << 10, 256 << 10, 1)]);
        assert!(results.iter().all(|(_, result)| result.is_ok()));
        device.sync().unwrap();
        let after = file.as_file().metadata().unwrap();
        assert!(after.blocks() <= before / 2, "{} of {before} sectors are left", after.blocks());
        assert_eq!(after.len(), 1 << 20);
    }
}

/// A loop device that is larger than the file system under it, as root.
struct Overcommitted {
    disk: Option<LoopDevice>,
    mount: TempDir,
}

impl Overcommitted {
    const ROOM: usize = 1 << 20;

    fn new() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let mount = TempDir::new().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=1M", "none", mount.path().to_str().unwrap()]);
        let mut this = Self { disk: None, mount };
        let backing = this.mount.path().join("disk");
        File::create(&backing).unwrap().set_len(4 * Self::ROOM as u64).unwrap();
        this.disk = Some(LoopDevice::over_file(&backing));
        Some(this)
    }

    fn path(&self) -> &Path {
        self.disk.as_ref().unwrap().path()
    }
}

impl Drop for Overcommitted {
    fn drop(&mut self) {
        self.disk = None;
        run("umount", &["--lazy", self.mount.path().to_str().unwrap()]);
    }
}

#[test]
fn a_write_error_is_reported_where_it_happens() {
    for backend in BACKENDS {
        let Some(disk) = Overcommitted::new() else { return };
        let device = open_device(disk.path(), Access::ReadWrite, backend).unwrap();
        // Every other page, so that the kernel joins no two writes: a loop device takes a request for good of which
        // its file took a part.
        let write = |i: u64| Op::write(i * 8192, AlignedBuf::copy_of(&[1; 4096]), i);
        let (good, bad): (Vec<_>, Vec<_>) = run_all(&*device, (0..512).map(write).collect())
            .into_iter()
            .partition(|(_, result)| result.is_ok());
        assert!(
            (200..=256).contains(&good.len()),
            "{} of 512 writes succeeded, with room for 256",
            good.len()
        );
        assert!(bad.iter().all(|(_, result)| result.as_ref().unwrap_err().raw_os_error().is_some()));
        let reads = good.iter().map(|(op, _)| Op::read(op.offset, 4096, op.tag)).collect();
        for (op, result) in run_all(&*device, reads) {
            result.unwrap();
            assert!(op.buf[..] == [1; 4096], "write at {} was lost", op.offset);
        }
    }
}

#[test]
fn after_a_failed_sync_the_device_is_dead() {
    for backend in BACKENDS {
        let Some(disk) = Overcommitted::new() else { return };
        let mut file = DiskFile::open(disk.path(), true).unwrap();
        file.direct = None; // Only what the page cache holds can fail later than its write.
        let device = Disk::new(file, backend).unwrap();
        write_all_at(&device, 0, &vec![1; 3 * Overcommitted::ROOM]).unwrap();
        let first = device.sync().unwrap_err();
        assert!(first.raw_os_error().is_some(), "{first}");

        let is_dead = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<DeadHandle>());
        let later = device.sync().unwrap_err();
        assert!(is_dead(&later) && later.to_string().contains(disk.path().to_str().unwrap()), "{later}");
        let ops = vec![Op::read(0, 512, 0), Op::write(0, AlignedBuf::zeroed(512), 1), Op::zero(0, 512, 2)];
        for (op, result) in run_all(&device, ops) {
            assert!(is_dead(&result.unwrap_err()), "{:?}", op.kind);
        }
    }
}

#[test]
fn a_mounted_block_device_is_not_opened_for_writing() {
    let Some(disk) = LoopDevice::over(&vec![0; 16 << 20]) else { return };
    let mount = TempDir::new().unwrap();
    let (device, folder) = (disk.path().to_str().unwrap(), mount.path().to_str().unwrap());
    run("mkfs.ext4", &["-q", device]);
    run("mount", &[device, folder]);
    let refused = open_device(disk.path(), Access::ReadWrite, Backend::Auto).map(|_| ());
    let read = open_device(disk.path(), Access::ReadOnly, Backend::Auto).map(|_| ());
    run("umount", &[folder]);
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("unmount"), "{refused}");
    read.unwrap();
    open_device(disk.path(), Access::ReadWrite, Backend::Auto).unwrap();
}

#[test]
fn where_io_uring_is_refused_threads_are_used() {
    let opened = std::thread::spawn(|| {
        refuse_io_uring(rustix::io::Errno::PERM);
        let file = NamedTempFile::new().unwrap();
        let open = |backend| open_device(file.path(), Access::ReadOnly, backend).map(|_| ());
        (open(Backend::Uring), open(Backend::Threads))
    });
    let (uring, threads) = opened.join().unwrap();
    let error = uring.unwrap_err();
    assert!(error.to_string().contains("kernel.io_uring_disabled"), "{error}");
    threads.unwrap();
}

#[test]
fn what_is_no_disk_is_refused_with_its_name() {
    for path in ["/nonexistent/disk", "/dev/null", "/"] {
        let error = open_device(path.as_ref(), Access::ReadOnly, Backend::Auto).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
    }
}

#[test]
fn holes_of_a_file_are_told() {
    const MIB: u64 = 1 << 20;
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(4 * MIB).unwrap();
    file.as_file().write_all_at(&[1; 4096], MIB).unwrap();
    let device = open_device(file.path(), Access::ReadOnly, Backend::Threads).unwrap();
    let expected = [(MIB, true), (4096, false), (3 * MIB - 4096, true)];
    assert_eq!(device.holes(0, 4 * MIB).unwrap(), expected);
    assert_eq!(device.holes(MIB, 4096).unwrap(), [(4096, false)]);
    assert_eq!(device.holes(MIB - 1, 2).unwrap(), [(1, true), (1, false)]);
    assert_eq!(device.holes(0, 0).unwrap(), []);
    // A block device knows none.
    let Some(disk) = LoopDevice::over(&vec![0; MIB as usize]) else { return };
    let device = open_device(disk.path(), Access::ReadOnly, Backend::Threads).unwrap();
    assert_eq!(device.holes(0, MIB).unwrap(), [(MIB, false)]);
}
