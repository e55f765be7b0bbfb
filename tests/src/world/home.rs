//! The disks at home: new ones, or such as were there before.

use std::path::{Path, PathBuf};

use engine::io::{Backend, write_all_at};
use master_target::{
    datastore::{Datastore, DatastoreKind},
    home::{Home, Original, Placement},
    vmdk::{
        flat::{self, NewDisk, Provisioning},
        geometry::{AdapterType, Capacity, DiskUuid},
    },
};

use super::*;

/// Name of the datastore.
const DATASTORE: &str = "ds1";

/// Folder of disks that were there before.
const OLD: &str = "old";

impl World {
    /// The master target's datastores and configuration.
    pub(super) fn home(&self) -> Home {
        let storage: Arc<dyn Storage> = Arc::clone(&self.target_storage) as _;
        let path = "/vmfs/volumes/ds1".into();
        let datastore =
            Datastore { name: DATASTORE.into(), path, kind: DatastoreKind::Vmfs, reserve_bytes: 0 };
        let original = |disk: usize| Original {
            vm: "vm".into(),
            disk: Self::disk_name(disk),
            datastore: DATASTORE.into(),
            descriptor: Path::new(OLD).join(format!("{}.vmdk", Self::disk_name(disk))),
        };
        let originals = self.originals.as_ref().map_or(0, Vec::len);
        Home {
            journal: Arc::clone(&storage),
            datastores: vec![(datastore, storage)],
            placement: Some(Placement { datastore: DATASTORE.into(), provisioning: Provisioning::Thin }),
            originals: (0..originals).map(original).collect(),
            devices: Vec::new(),
            backend: Backend::Auto,
        }
    }

    /// The file of a disk at home.
    pub(super) fn flat_file(&self, disk: usize) -> PathBuf {
        match (&self.originals, disk) {
            (Some(_), disk) => Path::new(OLD).join(format!("{}-flat.vmdk", Self::disk_name(disk))),
            (None, 0) => "vm/vm-flat.vmdk".into(),
            (None, disk) => format!("vm/vm_{disk}-flat.vmdk").into(),
        }
    }

    /// What the disks at home hold.
    pub(super) fn images(&self) -> Vec<Vec<u8>> {
        let disk = |(index, blocks): (usize, &u64)| {
            let device = self.target_storage.device(&self.flat_file(index)).unwrap();
            read_exact_at(device.as_ref(), 0, (blocks * BLOCK_BYTES) as usize).unwrap().to_vec()
        };
        self.plan.disks.iter().enumerate().map(disk).collect()
    }
}

/// Makes disks at home that hold much of what the VM's do; returns what they hold.
pub(super) fn originals(storage: &SimStorage, vm: &SimVm, plan: &Plan, rng: &mut StdRng) -> Vec<Vec<u8>> {
    let stale_one_in = rng.random_range(2..40);
    let make = |(index, blocks): (usize, &u64)| {
        let new = NewDisk {
            name: World::disk_name(index).parse().unwrap(),
            capacity: Capacity::for_bytes(blocks * BLOCK_BYTES).unwrap(),
            provisioning: Provisioning::Thin,
            adapter: AdapterType::default(),
            uuid: DiskUuid::random(rng),
        };
        let disk = flat::create(storage, Path::new(OLD), &new, rng, &mut |_, _| {}).unwrap();
        let mut bytes = vm.bytes(DiskIndex(index as u16));
        for block in bytes.chunks_mut(BLOCK_BYTES as usize) {
            if rng.random_range(0..stale_one_in) == 0 {
                block.fill(rng.random());
            }
        }
        let device = storage.device(&disk.flat).unwrap();
        write_all_at(device.as_ref(), 0, &bytes).unwrap();
        device.sync().unwrap();
        bytes
    };
    plan.disks.iter().enumerate().map(make).collect()
}
