//! Which mounted file systems live on a set of disks, and in which order they can be frozen.
//!
//! A file system lives on a disk if it is on the disk itself, on a partition of it, on a device mapper or RAID
//! device above those, on several devices of which one is such (btrfs), or on a loop device whose file is on
//! such a file system. In the last case it stands above the other: it must be frozen first, or writing it out
//! would wait for the one below. Read-only file systems are left out: nobody writes to them.
//!
//! Only mounts that this process sees count; the agent must run in the machine's own mount namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use engine::io::blockdev::DeviceId;
use rustix::fs::{AtFlags, StatxFlags, statx};

/// Loops on file systems on loops: deeper than this nobody goes.
const LAYERS: usize = 16;

/// Why the file systems could not be found.
#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    /// The kernel's tables could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file system's mount points are all hidden below others.
    #[error("cannot reach the {kind} file system at {}: another is mounted over it", mount_point.display())]
    Hidden {
        /// The last one tried.
        mount_point: PathBuf,
        /// Its type.
        kind: String,
    },
    /// The kernel does not say which devices a file system is on.
    #[error("cannot tell which disks the {kind} file system at {} is on (its source is `{device}`)", mount_point.display())]
    Unknown {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Its type.
        kind: String,
        /// Its device as the mount table has it.
        device: String,
    },
}

/// A mounted file system.
#[derive(Debug)]
pub struct FileSystem {
    /// One of its mount points.
    pub mount_point: PathBuf,
    /// Its type, as ext4.
    pub kind: String,
    /// The mount point, opened.
    pub(super) dir: File,
}

/// Finds the file systems on `disks`, in the order in which they can be frozen.
pub fn file_systems_on(disks: &[DeviceId]) -> Result<Vec<FileSystem>, MountsError> {
    const MOUNTINFO: &str = "/proc/self/mountinfo";
    let table = fs::read(MOUNTINFO).map_err(|source| MountsError::Io { path: MOUNTINFO.into(), source })?;
    let sys = Sys::read(Path::new("/sys"))?;
    let found = select(&parse(&table), &sys, disks)?;
    found.iter().map(|mounts| open(mounts)).collect()
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    device: DeviceId,
    mount_point: PathBuf,
    kind: String,
    source: String,
    read_only: bool,
}

/// Parses the mount table; lines that make no sense are left out.
fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `id parent major:minor root mount-point options [tags...] - type source super-options`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let id = text(fields.next()?).parse().ok()?;
    let device = parse_device(&text(fields.nth(1)?))?;
    let mount_point = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.nth(1)?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (text(rest.next()?), text(&unescape(rest.next()?)));
    let read_only = rest.next()?.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(Mount { id, device, mount_point, kind, source, read_only })
}

fn parse_device(text: &str) -> Option<DeviceId> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(DeviceId { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), field);
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| byte == b'\\');
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes
}

/// What sysfs says of block devices.
#[derive(Debug, Default)]
struct Sys {
    /// A device, and one directly below it.
    below: Vec<(DeviceId, DeviceId)>,
    /// A loop device, and its file.
    loops: Vec<(DeviceId, PathBuf)>,
    /// Devices of each btrfs.
    btrfs: Vec<BTreeSet<DeviceId>>,
}

impl Sys {
    /// Reads the tree at `root`. Devices that vanish meanwhile are left out.
    fn read(root: &Path) -> Result<Self, MountsError> {
        let mut sys = Self::default();
        let block = root.join("block");
        for disk in list(&block).map_err(|source| MountsError::Io { path: block.clone(), source })? {
            let Some(id) = device_of(&disk) else { continue };
            for part in list(&disk).unwrap_or_default().iter().filter(|part| part.join("partition").exists())
            {
                sys.below.extend(device_of(part).map(|part| (part, id)));
            }
            let slaves = list(&disk.join("slaves")).unwrap_or_default();
            sys.below.extend(slaves.iter().filter_map(|slave| Some((id, device_of(slave)?))));
            if let Ok(file) = fs::read(disk.join("loop/backing_file")) {
                let file = file.strip_suffix(b"\n").unwrap_or(&file).to_vec();
                sys.loops.push((id, std::ffi::OsString::from_vec(file).into()));
            }
        }
        for btrfs in list(&root.join("fs/btrfs")).unwrap_or_default() {
            let devices = list(&btrfs.join("devices")).unwrap_or_default();
            sys.btrfs.push(devices.iter().filter_map(|device| device_of(device)).collect());
        }
        Ok(sys)
    }

    /// `devices` and everything stacked on them.
    fn with_stacked(&self, mut devices: BTreeSet<DeviceId>) -> BTreeSet<DeviceId> {
        loop {
            let count = devices.len();
            let stacked =
                self.below.iter().filter(|(_, below)| devices.contains(below)).map(|(above, _)| *above);
            let stacked: Vec<_> = stacked.collect();
            devices.extend(stacked);
            if devices.len() == count {
                return devices;
            }
        }
    }

    /// The devices of a mounted file system; empty if it is on none.
    fn devices_of(&self, mount: &Mount) -> Result<BTreeSet<DeviceId>, MountsError> {
        // Major 0 is for file systems without a device, or with several.
        if mount.device.major != 0 {
            return Ok([mount.device].into());
        }
        let named = mount.source.split(':').filter(|path| path.starts_with("/dev/"));
        let named: BTreeSet<_> =
            named.filter_map(|path| Some(DeviceId::from_dev_t(fs::metadata(path).ok()?.rdev()))).collect();
        if mount.kind != "btrfs" {
            return Ok(named);
        }
        let whole = self.btrfs.iter().find(|devices| !devices.is_disjoint(&named));
        whole.cloned().ok_or_else(|| MountsError::Unknown {
            mount_point: mount.mount_point.clone(),
            kind: mount.kind.clone(),
            device: mount.source.clone(),
        })
    }
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

fn device_of(dir: &Path) -> Option<DeviceId> {
    parse_device(&fs::read_to_string(dir.join("dev")).ok()?)
}

/// The file systems on `disks`, topmost first, each with all its mounts.
fn select(mounts: &[Mount], sys: &Sys, disks: &[DeviceId]) -> Result<Vec<Vec<Mount>>, MountsError> {
    let mut by_devices: BTreeMap<BTreeSet<DeviceId>, Vec<Mount>> = BTreeMap::new();
    for mount in mounts {
        let devices = sys.devices_of(mount)?;
        if !devices.is_empty() {
            by_devices.entry(devices).or_default().push(mount.clone());
        }
    }
    let mut layers: BTreeMap<&BTreeSet<DeviceId>, usize> = BTreeMap::new();
    let mut devices = sys.with_stacked(disks.iter().copied().collect());
    for layer in 0..LAYERS {
        let here: Vec<_> = by_devices.keys().filter(|of| !of.is_disjoint(&devices)).collect();
        if here.is_empty() {
            break;
        }
        let on_these = |file: &Path| {
            let mount = mounts.iter().filter(|mount| file.starts_with(&mount.mount_point));
            // The longest path is the innermost mount, and of equals the last is on top.
            let mount = mount.max_by_key(|mount| mount.mount_point.as_os_str().len());
            mount.is_some_and(|mount| here.iter().any(|of| by_devices[*of].contains(mount)))
        };
        let loops = sys.loops.iter().filter(|(_, file)| on_these(file)).map(|(id, _)| *id);
        devices = sys.with_stacked(loops.collect());
        layers.extend(here.into_iter().map(|of| (of, layer)));
    }
    let mut order: Vec<_> = layers.into_iter().collect();
    order.sort_by_key(|(_, layer)| std::cmp::Reverse(*layer));
    let writable = |of: &BTreeSet<DeviceId>| by_devices[of].iter().all(|mount| !mount.read_only);
    Ok(order.into_iter().filter(|(of, _)| writable(of)).map(|(of, _)| by_devices[of].clone()).collect())
}

/// Opens the first of a file system's mount points that leads to it.
fn open(mounts: &[Mount]) -> Result<FileSystem, MountsError> {
    for mount in mounts {
        let failed = |source| MountsError::Io { path: mount.mount_point.clone(), source };
        let dir = File::open(&mount.mount_point).map_err(failed)?;
        let found =
            statx(&dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map_err(|error| failed(error.into()))?;
        if found.stx_mnt_id == mount.id {
            return Ok(FileSystem { mount_point: mount.mount_point.clone(), kind: mount.kind.clone(), dir });
        }
    }
    // There is no group without a mount.
    let Mount { mount_point, kind, .. } = mounts[mounts.len() - 1].clone();
    Err(MountsError::Hidden { mount_point, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn dev(major: u32, minor: u32) -> DeviceId {
        DeviceId { major, minor }
    }

    fn selected(table: &str, sys: &Sys, disk: DeviceId) -> Vec<String> {
        let found = select(&parse(table.as_bytes()), sys, &[disk]).unwrap();
        found.iter().map(|mounts| mounts[0].mount_point.display().to_string()).collect()
    }

    #[test]
    fn a_line_is_parsed_whatever_is_in_it() {
        let line = br"36 35 98:0 /sub /mnt\0402\134x rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let mount = parse_line(line).unwrap();
        assert_eq!(
            mount,
            Mount {
                id: 36,
                device: dev(98, 0),
                mount_point: r"/mnt 2\x".into(),
                kind: "ext3".into(),
                source: "/dev/root".into(),
                read_only: false,
            }
        );
        assert!(parse_line(b"24 1 7:1 / /snap ro - squashfs /dev/loop1 ro").unwrap().read_only);
        assert_eq!(parse(b"\n1 2\nx y z\n1 2 3:x / / rw - a b c\n"), []);
    }

    #[test]
    fn partitions_stacks_and_loops_are_followed_and_frozen_first() {
        let table = "\
            20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            21 20 253:0 / /data rw - xfs /dev/mapper/data rw\n\
            22 20 8:16 / /other rw - ext4 /dev/sdb rw\n\
            23 20 7:0 / /image rw - ext4 /dev/loop0 rw\n\
            24 20 7:1 / /snap rw - squashfs /dev/loop1 ro\n\
            25 20 7:2 / /image/inner rw - ext4 /dev/loop2 rw\n\
            26 20 8:1 /var /mnt/var rw - ext4 /dev/sda1 rw\n\
            27 20 0:5 / /proc rw - proc proc rw\n\
            28 20 7:3 / /elsewhere rw - ext4 /dev/loop3 rw\n";
        let sys = Sys {
            below: vec![
                (dev(8, 1), dev(8, 0)),
                (dev(8, 2), dev(8, 0)),
                (dev(9, 0), dev(8, 2)),
                (dev(253, 0), dev(9, 0)),
            ],
            loops: vec![
                (dev(7, 0), "/data/disk.img".into()),
                (dev(7, 1), "/snap.squashfs".into()),
                (dev(7, 2), "/image/disk.img".into()),
                (dev(7, 3), "/other/disk.img".into()),
            ],
            btrfs: vec![],
        };
        let found = selected(table, &sys, dev(8, 0));
        assert_eq!(found[..2], ["/image/inner", "/image"]);
        assert_eq!(BTreeSet::from_iter(&found[2..]), BTreeSet::from([&"/".to_owned(), &"/data".to_owned()]));
        assert_eq!(found.len(), 4);
        assert_eq!(selected(table, &sys, dev(8, 16)), ["/elsewhere", "/other"]);
        assert!(selected(table, &sys, dev(8, 32)).is_empty());
    }

    #[test]
    fn sysfs_is_read_as_it_lies() {
        let tree = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = tree.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("block/sda/dev", "8:0\n");
        put("block/sda/sda1/dev", "8:1\n");
        put("block/sda/sda1/partition", "1\n");
        put("block/sda/queue/dev", "1:1\n");
        put("block/dm-0/dev", "253:0\n");
        put("block/dm-0/slaves/sda1/dev", "8:1\n");
        put("block/loop0/dev", "7:0\n");
        put("block/loop0/loop/backing_file", "/a b\n");
        put("fs/btrfs/0000/devices/sda1/dev", "8:1\n");
        put("fs/btrfs/features/x", "");
        let sys = Sys::read(tree.path()).unwrap();
        assert_eq!(sys.with_stacked([dev(8, 0)].into()), [dev(8, 0), dev(8, 1), dev(253, 0)].into());
        assert_eq!(sys.loops, [(dev(7, 0), "/a b".into())]);
        assert!(sys.btrfs.contains(&[dev(8, 1)].into()));
    }
}
