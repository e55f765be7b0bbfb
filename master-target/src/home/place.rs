//! Where the disks of a new stream go: to disks that exist, in place, or to new ones.
//!
//! Everything that can be refused of a disk that exists is refused before anything is written anywhere, so that it, and
//! what stands beside it, stays as it was. Only then new disks are created. What is written to adopted disks later is not
//! decided here.

use std::path::{Path, PathBuf};

use engine::{
    frame::{DiskInfo, Refusal, StreamInfo},
    units::StreamId,
};
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::{Home, Rejected};
use crate::{
    datastore::EntryName,
    journal::{JournalError, TargetDisk},
    vmdk::{
        adopt,
        flat::{self, FlatErrorKind, NewDisk, Provisioning},
        geometry::{AdapterType, Capacity, DiskUuid},
    },
};

/// Where the disks of new VMs go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Name of the datastore.
    pub datastore: String,
    /// When space is taken.
    #[serde(default)]
    pub provisioning: Provisioning,
}

/// A disk that goes to a block device, such as a hot-added VMDK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceTarget {
    /// Name of the VM.
    pub vm: String,
    /// Name of its disk.
    pub disk: String,
    /// The device to write to.
    pub device: PathBuf,
    /// What becomes of what is on it.
    #[serde(default)]
    pub content: Content,
}

/// What becomes of the content of a disk that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// It is lost.
    #[default]
    Lose,
    /// It is compared with the source, and kept as a point.
    Keep,
}

/// A disk that was there before the disaster: it is written in place, where it differs, and kept as a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Original {
    /// Name of the VM.
    pub vm: String,
    /// Name of its disk.
    pub disk: String,
    /// Name of the datastore.
    pub datastore: String,
    /// The VMDK's descriptor, below the datastore.
    pub descriptor: PathBuf,
}

/// Where the disks of a stream are.
pub(super) struct Placed {
    /// Disk by disk.
    pub(super) targets: Vec<TargetDisk>,
    /// Whether some of them hold something that is kept.
    pub(super) found: bool,
}

/// A disk that exists, and whether what it holds is kept.
type Existing = (TargetDisk, Content);

impl Home {
    /// Finds the disks of a new stream that exist, and creates the others.
    pub(super) fn place(&self, stream: &StreamInfo) -> Result<Placed, Rejected> {
        self.check_names(stream)?;
        let existing = stream.disks.iter().map(|disk| self.find_existing(stream, disk));
        let existing: Vec<Option<Existing>> = existing.collect::<Result<_, _>>()?;
        let found = existing.iter().flatten().any(|(_, content)| *content == Content::Keep);
        let new = stream.disks.iter().zip(&existing).filter(|(_, existing)| existing.is_none());
        self.check_placement(stream, &new.map(|(disk, _)| disk).collect::<Vec<_>>())?;
        let targets = existing.into_iter().enumerate().map(|(index, existing)| match existing {
            Some((target, _)) => Ok(target),
            None => self.create(stream, index),
        });
        Ok(Placed { targets: targets.collect::<Result<_, _>>()?, found })
    }

    /// Refuses a VM one of whose originals is of a disk that it does not have: a full copy would go elsewhere.
    fn check_names(&self, stream: &StreamInfo) -> Result<(), Rejected> {
        let has = |name: &String| stream.disks.iter().any(|disk| disk.name == *name);
        let mut originals = self.originals.iter().filter(|original| original.vm == stream.vm);
        let Some(Original { vm, disk, .. }) = originals.find(|original| !has(&original.disk)) else {
            return Ok(());
        };
        let disks: Vec<&str> = stream.disks.iter().map(|disk| disk.name.as_str()).collect();
        let reason = format!(
            "an original is configured for disk {disk} of VM {vm}, which has no such disk but {}: correct its name",
            disks.join(", ")
        );
        Err(Rejected::new(Refusal::BadRequest, reason))
    }

    /// The disk that exists for `disk`, if one is configured, once nothing speaks against writing to it.
    fn find_existing(&self, stream: &StreamInfo, disk: &DiskInfo) -> Result<Option<Existing>, Rejected> {
        let original = self.originals.iter().find(|found| found.vm == stream.vm && found.disk == disk.name);
        let device = self.devices.iter().find(|found| found.vm == stream.vm && found.disk == disk.name);
        let (target, size, content) = match (original, device) {
            (Some(original), _) => {
                let (target, size) = self.adopt(original).map_err(|Rejected { why, reason }| {
                    let (vm, name) = (&stream.vm, &disk.name);
                    Rejected::new(why, format!("the original of disk {name} of VM {vm}: {reason}"))
                })?;
                (target, size, Content::Keep)
            }
            (None, Some(device)) => {
                let target = TargetDisk::Device { path: device.device.display().to_string() };
                let size = self.open_block_device(&device.device)?.size();
                (target, size, device.content)
            }
            (None, None) => return Ok(None),
        };
        if content == Content::Keep {
            self.check_unused(stream.id, &target)?;
            check_size(stream, disk, size)?;
        }
        // Also that it can be opened for writing.
        self.open_target(disk, &target)?;
        Ok(Some((target, content)))
    }

    /// The disk of an original, and its size, if its files allow it to be written.
    fn adopt(&self, original: &Original) -> Result<(TargetDisk, u64), Rejected> {
        let refused = |error: String| {
            Rejected::new(Refusal::BadRequest, format!("datastore {}: {error}", original.datastore))
        };
        let (datastore, storage) = self.datastore(&original.datastore)?;
        datastore.check_flat_files().map_err(|error| refused(error.to_string()))?;
        let found = adopt::open_for_writing(storage.as_ref(), &original.descriptor)
            .map_err(|error| refused(error.to_string()))?;
        let descriptor = original.descriptor.display().to_string();
        let target = TargetDisk::Vmdk { datastore: datastore.name.clone(), descriptor, thin: found.thin };
        Ok((target, found.capacity.bytes()))
    }

    /// Refuses a disk to which another replication leads back.
    fn check_unused(&self, stream: StreamId, target: &TargetDisk) -> Result<(), Rejected> {
        let others = self.streams()?.into_iter().filter(|id| *id != stream);
        for id in others {
            let other = self.state(id)?;
            if other.targets.iter().any(|known| known.is_same_place(target)) {
                let reason = format!(
                    "{target} is a disk of replication {id} of VM {}, whose points would be lost; if they are not \
                     needed any more, move its folder out of the journal",
                    other.stream.vm
                );
                return Err(Rejected::new(Refusal::BadRequest, reason));
            }
        }
        Ok(())
    }

    /// Whether there is a place for `new` disks, and room.
    fn check_placement(&self, stream: &StreamInfo, new: &[&DiskInfo]) -> Result<(), Rejected> {
        let Some(first) = new.first() else { return Ok(()) };
        let Some(placement) = &self.placement else {
            let reason = format!(
                "nowhere to put disk {} of VM {}: configure a placement, an original or a device",
                first.name, stream.vm
            );
            return Err(Rejected::new(Refusal::BadRequest, reason));
        };
        let required = new.iter().map(|disk| match placement.provisioning {
            Provisioning::Thin => disk.used_bytes.min(disk.bytes),
            Provisioning::LazilyZeroed | Provisioning::EagerlyZeroed => disk.bytes,
        });
        let (datastore, storage) = self.datastore(&placement.datastore)?;
        let free = storage.free_space().map_err(JournalError::io("measure", &datastore.path))?;
        datastore.check_space(required.sum(), free).map_err(|e| Rejected::new(Refusal::NoSpace, e))
    }

    /// Creates the new disk for the disk `index` of a stream.
    fn create(&self, stream: &StreamInfo, index: usize) -> Result<TargetDisk, Rejected> {
        let disk = &stream.disks[index];
        let bad = |error: String| Rejected::new(Refusal::BadRequest, error);
        let placement = self.placement.as_ref().ok_or_else(|| bad("no placement is configured".into()))?;
        let (datastore, storage) = self.datastore(&placement.datastore)?;
        datastore.check_flat_files().map_err(|e| bad(e.to_string()))?;
        let vm: EntryName = stream.vm.parse().map_err(|e: crate::datastore::NameError| bad(e.to_string()))?;
        let name = if index == 0 { stream.vm.clone() } else { format!("{}_{index}", stream.vm) };
        // The identity follows from the stream, so that after a crash our own disk is told from another's.
        let mut rng =
            StdRng::from_seed(*blake3::hash(format!("{} {index}", stream.id).as_bytes()).as_bytes());
        let new = NewDisk {
            name: name.parse().map_err(|e: crate::datastore::NameError| bad(e.to_string()))?,
            capacity: Capacity::for_bytes(disk.bytes).map_err(|e| bad(e.to_string()))?,
            provisioning: placement.provisioning,
            adapter: AdapterType::default(),
            uuid: DiskUuid::random(&mut rng),
        };
        let descriptor = vm.folder().join(format!("{}.vmdk", new.name));
        match flat::create(storage.as_ref(), vm.folder(), &new, &mut rng, &mut |_, _| {}) {
            Ok(_) => {}
            Err(error) if matches!(error.kind, FlatErrorKind::Exists) => {
                let ours =
                    adopt::open_for_writing(storage.as_ref(), &descriptor).map_err(|e| bad(e.to_string()))?;
                if ours.uuid != Some(new.uuid) {
                    return Err(bad(format!("datastore {}: {error}", datastore.name)));
                }
            }
            Err(error) => {
                return Err(Rejected::new(
                    Refusal::Unavailable,
                    format!("datastore {}: {error}", datastore.name),
                ));
            }
        }
        Ok(TargetDisk::Vmdk {
            datastore: datastore.name.clone(),
            descriptor: descriptor.display().to_string(),
            thin: placement.provisioning == Provisioning::Thin,
        })
    }
}

/// Refuses a disk at home that cannot be that of the source: disks have the same size, but for what Homeward itself
/// rounds new ones up by.
fn check_size(stream: &StreamInfo, disk: &DiskInfo, size: u64) -> Result<(), Rejected> {
    let (vm, name, need) = (&stream.vm, &disk.name, disk.bytes);
    let reason = if size < need {
        format!(
            "disk {name} of VM {vm} has {need} bytes and the one at home only {size}: enlarge that to {need} bytes in \
             vCenter, or leave it out of the configuration to get a new one"
        )
    } else if Capacity::for_bytes(need).is_ok_and(|largest| size > largest.bytes()) {
        format!(
            "disk {name} of VM {vm} has {need} bytes and the one at home {size}: it is another disk, or the source was \
             made smaller; name the right one, or leave it out of the configuration to get a new one"
        )
    } else {
        return Ok(());
    };
    Err(Rejected::new(Refusal::BadRequest, reason))
}

/// Why a path cannot be that of a descriptor below a datastore; `None` if it can.
pub(crate) fn objection(descriptor: &Path) -> Option<&'static str> {
    let is_plain = descriptor.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if descriptor.as_os_str().is_empty() || !is_plain {
        Some("it must lie below the datastore's folder, as in \"web-01/web-01.vmdk\"")
    } else if descriptor.extension().is_none_or(|end| !end.eq_ignore_ascii_case("vmdk")) {
        Some("it must be a .vmdk file")
    } else {
        None
    }
}
