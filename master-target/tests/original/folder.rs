//! A datastore with the folder of a VM as ESXi leaves it, and a home that is told to adopt its disk.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use engine::{
    frame::{DiskInfo, StreamInfo},
    io::{Backend, FolderStorage},
    units::StreamId,
};
use master_target::{
    datastore::{Datastore, DatastoreKind},
    home::{Home, Original, Placement},
    vmdk::flat::Provisioning,
};
use tempfile::TempDir;

/// Size of the disk: 8 MiB.
pub const BYTES: u64 = 8 << 20;

const DESCRIPTOR: &str = r#"# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=8f67ca74
parentCID=ffffffff
createType="vmfs"

# Extent description
RW 16384 VMFS "web-01-flat.vmdk"

# The Disk Data Base 
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "8"
ddb.geometry.heads = "64"
ddb.geometry.sectors = "32"
ddb.longContentID = "4b98b55ba6a6bc2e8fd6eb368f67ca74"
ddb.thinProvisioned = "1"
ddb.unheard_of = "stays"
ddb.uuid = "60 00 C2 9f 28 1e 65 bf-3d cc 5e f0 f5 42 1e f6"
ddb.virtualHWVersion = "14"
"#;

/// A journal and a datastore with one VM.
pub struct Ground {
    dir: TempDir,
    pub kind: DatastoreKind,
    pub descriptor: PathBuf,
    pub stream: StreamInfo,
}

impl Ground {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskInfo { name: "sda".into(), bytes: BYTES, used_bytes: BYTES };
        let ground = Self {
            dir,
            kind: DatastoreKind::Nfs,
            descriptor: "web-01/web-01.vmdk".into(),
            stream: StreamInfo {
                id: StreamId(uuid::Uuid::from_u128(5)),
                vm: "web-01".into(),
                disks: vec![disk],
            },
        };
        fs::create_dir_all(ground.folder()).unwrap();
        fs::create_dir_all(ground.journal()).unwrap();
        ground.put("web-01.vmdk", DESCRIPTOR);
        let noise: Vec<u8> =
            (0..BYTES / 4).flat_map(|n| (n as u32).wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
        ground.put("web-01-flat.vmdk", noise);
        // What else a VM has there.
        ground.put("web-01.vmx", "scsi0:0.fileName = \"web-01.vmdk\"\nnvram = \"web-01.nvram\"\n");
        ground.put(
            "web-01.vmsd",
            ".encoding = \"UTF-8\"\nsnapshot.lastUID = \"3\"\nsnapshot.numSnapshots = \"0\"\n",
        );
        ground.put("web-01.nvram", [0x4D, 0x52, 0, 0xFF]);
        ground.put("web-01_1-flat.vmdk", [7; 4096]);
        ground
    }

    /// Folder of the VM.
    pub fn folder(&self) -> PathBuf {
        self.dir.path().join("gold/web-01")
    }

    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// Writes a file of the VM's folder.
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.folder().join(name), bytes).unwrap();
    }

    /// Changes something in the descriptor.
    pub fn edit(&self, from: &str, to: &str) {
        let path = self.folder().join("web-01.vmdk");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from:?} is not in the descriptor");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    /// A home that adopts the disk, and knows where others go.
    pub fn home(&self) -> Home {
        let open = |path: &Path| Arc::new(FolderStorage::open(path, Backend::Threads).unwrap());
        let path = self.dir.path().join("gold");
        let datastore =
            Datastore { name: "gold".into(), path: path.clone(), kind: self.kind, reserve_bytes: 0 };
        Home {
            journal: open(&self.journal()),
            datastores: vec![(datastore, open(&path))],
            placement: Some(Placement { datastore: "gold".into(), provisioning: Provisioning::Thin }),
            originals: vec![Original {
                vm: "web-01".into(),
                disk: "sda".into(),
                datastore: "gold".into(),
                descriptor: self.descriptor.clone(),
            }],
            devices: Vec::new(),
            backend: Backend::Threads,
        }
    }

    /// Everything below the datastore and the journal, byte for byte. A folder has no bytes.
    pub fn everything(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let (mut found, mut folders) = (BTreeMap::new(), vec![self.dir.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let bytes = path.is_file().then(|| fs::read(&path).unwrap());
                folders.extend(bytes.is_none().then(|| path.clone()));
                found.insert(path, bytes);
            }
        }
        found
    }
}
