//! Every reason not to adopt a disk, through the way that a real stream comes in.

use std::fs;

use engine::{frame::Refusal, units::StreamId};
use master_target::{
    datastore::DatastoreKind,
    home::{Content, DeviceTarget},
};

use crate::folder::{BYTES, Ground};

/// The disk is refused with these words, and nothing changes.
fn refuses(case: &str, words: &[&str], change: impl FnOnce(&mut Ground)) {
    let mut ground = Ground::new();
    change(&mut ground);
    check(case, &ground, words);
}

fn check(case: &str, ground: &Ground, words: &[&str]) {
    let before = ground.everything();
    let prepared = ground.home().prepare("agent-1", &ground.stream);
    let refused = prepared.err().unwrap_or_else(|| panic!("{case}: it was adopted"));
    assert_eq!(refused.why, Refusal::BadRequest, "{case}");
    for word in words {
        assert!(refused.reason.contains(word), "{case}: {word:?} is not in: {}", refused.reason);
    }
    let who = ["the original of disk sda of VM web-01: datastore gold: ", "disk sda of VM web-01 has "];
    assert!(who.iter().any(|who| refused.reason.contains(who)), "{case}: which disk? {}", refused.reason);
    assert!(ground.everything() == before, "{case}: something was changed");
    assert_eq!(fs::read_dir(ground.journal()).unwrap().count(), 0, "{case}: a journal was made");
}

/// The same for a change of the descriptor.
fn refuses_text(from: &str, to: &str, words: &[&str]) {
    refuses(to, words, |ground| ground.edit(from, to));
}

const VERSION: &str = "version=1\n";
const TYPE: &str = "createType=\"vmfs\"";
const PARENT: &str = "parentCID=ffffffff\n";
const EXTENT: &str = "RW 16384 VMFS \"web-01-flat.vmdk\"";

#[test]
fn what_is_no_descriptor() {
    refuses("missing", &["web-01/other.vmdk cannot be written to", "no such file"], |ground| {
        ground.descriptor = "web-01/other.vmdk".into();
    });
    refuses("the flat file", &["8388608 bytes are too many for a descriptor", "disk itself"], |ground| {
        ground.descriptor = "web-01/web-01-flat.vmdk".into();
    });
    refuses("nonsense", &["not a valid VMDK descriptor", "line 1", "NAME.vmdk"], |ground| {
        ground.put("web-01.vmdk", "what is this\n");
    });
    let one_file = ["in one file", "vmkfstools -i or qemu-img convert"];
    for magic in ["KDMV", "COWD"] {
        refuses(magic, &one_file, |ground| ground.put("web-01.vmdk", format!("{magic}\x01\0\0\0")));
    }
    refuses_text("CID=8f67ca74\n", "", &["no line that sets CID"]);
}

#[test]
fn snapshots_and_whatever_depends_on_the_disk() {
    for kind in ["vmfsSparse", "seSparse", "vsanSparse"] {
        refuses_text(TYPE, &format!("createType=\"{kind}\""), &["it is a snapshot", "consolidate"]);
    }
    refuses_text(PARENT, "parentCID=0172e8a4\n", &["it is a snapshot (of an unnamed parent)"]);
    let hint = format!("{PARENT}parentFileNameHint=\"base.vmdk\"\n");
    refuses_text(PARENT, &hint, &["it is a snapshot (base.vmdk)", "name the base disk"]);
    refuses_text(VERSION, "version=1\nisNativeSnapshot=\"yes\"\n", &["native snapshot", "consolidate"]);

    let child = |cid: &str, hint: &str| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=00000abc\nparentCID={cid}\ncreateType=\"seSparse\"\n\
             parentFileNameHint=\"{hint}\"\nRW 16384 SESPARSE \"web-01-000001-sesparse.vmdk\"\n"
        )
    };
    for hint in ["web-01.vmdk", "/vmfs/volumes/gold/web-01/web-01.vmdk"] {
        refuses(hint, &["web-01-000001.vmdk has it as its parent", "consolidate"], |ground| {
            ground.put("web-01-000001.vmdk", child("12345678", hint));
            ground.put("web-01-000001-sesparse.vmdk", [0; 512]);
        });
    }
    refuses("by content id", &["renamed-000001.vmdk has it as its parent"], |ground| {
        ground.put("renamed-000001.vmdk", child("8F67CA74", "before.vmdk"));
    });
    for end in ["delta", "sesparse"] {
        let orphan = format!("web-01-000002-{end}.vmdk");
        refuses(&orphan, &[&orphan, "whose descriptor is missing", "move it away"], |ground| {
            ground.put(&orphan, [0; 4096]);
        });
    }
    refuses(
        "torn neighbour",
        &["web-01-000001.vmdk, beside it, cannot be read", "repair or move it"],
        |ground| {
            ground.put("web-01-000001.vmdk", "# Disk DescriptorFile\nversi");
        },
    );
    refuses("its list", &["web-01.vmsd says that the VM has snapshots (2)", "consolidate them"], |ground| {
        ground.put("web-01.vmsd", "snapshot.numSnapshots = \"2\"\nsnapshot0.uid = \"1\"\n");
    });
    for list in ["snapshot.numSnapshots = \"x\"\n", "snapshot0.uid = \"1\"\n"] {
        refuses(list, &["web-01.vmsd, beside it, cannot be read"], |ground| ground.put("web-01.vmsd", list));
    }
    for link in ["web-01-000003.vmdk", "/vmfs/volumes/fast/redo/web-01-000003.vmdk"] {
        let words = ["web-01.vmx says that the VM runs from web-01-000003.vmdk", "consolidate"];
        refuses(link, &words, |ground| {
            ground.put("web-01.vmx", format!("scsi0:0.fileName = \"{link}\"\n"));
        });
    }
    refuses("two descriptors", &["copy.vmdk uses the same file \"web-01-flat.vmdk\"", "remove"], |ground| {
        ground.put(
            "copy.vmdk",
            format!("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n{EXTENT}\n"),
        );
    });
}

#[test]
fn disks_whose_writes_somebody_else_must_see() {
    let ctk = "version=3\nchangeTrackPath=\"web-01-ctk.vmdk\"\n";
    let words = ["ESXi tracks its changed blocks", "switch changed block tracking off", "full one"];
    refuses_text(VERSION, ctk, &[&words[..], &["in \"web-01-ctk.vmdk\""]].concat());
    refuses_text(VERSION, "version=3\n", &[&words[..], &["its format version is 3"]].concat());
    for version in [2, 4] {
        let reason = format!("its format version is {version}; only version 1");
        refuses_text(VERSION, &format!("version={version}\n"), &[&reason, "vmkfstools -i"]);
    }
    refuses_text(VERSION, "version=1\nencryptionKeys=\"vmware:key\"\n", &["it is encrypted", "block device"]);
    refuses_text("ddb.unheard_of", "ddb.iofilters", &["I/O filter", "detach the filter"]);
}

#[test]
fn disks_that_are_no_flat_files() {
    for raw in ["vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap", "vmfsRaw"] {
        refuses_text(
            TYPE,
            &format!("createType=\"{raw}\""),
            &["maps a raw device", raw, "use the block device"],
        );
    }
    let rdm = "RW 16384 VMFSRDM \"web-01-rdm.vmdk\"";
    refuses_text(EXTENT, rdm, &["maps a raw device (VMFSRDM)", "use the block device"]);
    for other in [
        "monolithicSparse",
        "twoGbMaxExtentFlat",
        "twoGbMaxExtentSparse",
        "streamOptimized",
        "fullDevice",
        "partitionedDevice",
        "custom",
    ] {
        refuses_text(TYPE, &format!("createType=\"{other}\""), &[other, "not a flat disk; convert it"]);
    }
    let vsan = "RW 16384 VMFS \"vsan://52a1c7d0-0f3e-4a5b-9c1d-2e3f40516273\"";
    refuses_text(EXTENT, vsan, &["vSAN object", "attach it", "use its block device"]);
    refuses("vSAN", &["\"gold\" is vSAN", "configure its block device"], |ground| {
        ground.kind = DatastoreKind::Vsan;
    });
}

#[test]
fn extents_that_are_not_understood() {
    refuses_text(EXTENT, "", &["it has 0 extents"]);
    let two = format!("{EXTENT}\nRW 8 VMFS \"more-flat.vmdk\"");
    refuses_text(EXTENT, &two, &["it has 2 extents", "vmkfstools -i"]);
    let read_only = "RDONLY 16384 VMFS \"web-01-flat.vmdk\"";
    refuses_text(EXTENT, read_only, &["its extent is RDONLY VMFS", "RW VMFS", "repair the descriptor"]);
    refuses_text(EXTENT, "RW 16384 SPARSE \"web-01-flat.vmdk\"", &["its extent is RW SPARSE"]);
    refuses("a flat extent not at the start", &["begin at sector 63", "convert it"], |ground| {
        ground.edit(TYPE, "createType=\"monolithicFlat\"");
        ground.edit(EXTENT, "RW 16384 FLAT \"web-01-flat.vmdk\" 63");
    });
    for outside in ["../web-02/web-02-flat.vmdk", "/dev/sda", "..", ""] {
        let words = ["not a file beside the descriptor", "bring the two together"];
        refuses_text(EXTENT, &format!("RW 16384 VMFS \"{outside}\""), &words);
    }
    refuses_text("RW 16384", "RW 0", &["a disk of 0 bytes", "repair the descriptor"]);
    refuses_text("RW 16384", "RW 133143986177", &["62 TiB"]);
}

#[test]
fn sizes_that_do_not_agree() {
    for bytes in [BYTES - 512, BYTES + 512] {
        let words = [&format!("{bytes} bytes and the descriptor says {BYTES}"), "one of them is damaged"];
        refuses("the flat file's", &words, |ground| ground.put("web-01-flat.vmdk", vec![1; bytes as usize]));
    }
    refuses("no flat file", &["web-01-flat.vmdk: cannot find the length: No such file"], |ground| {
        fs::remove_file(ground.folder().join("web-01-flat.vmdk")).unwrap();
    });
    for (bytes, words) in [
        (BYTES + 512, ["only 8388608", "enlarge that to 8389120 bytes in vCenter"]),
        (BYTES - (1 << 20), ["the one at home 8388608", "made smaller; name the right one"]),
    ] {
        refuses("the source's", &words, |ground| ground.stream.disks[0].bytes = bytes);
    }
}

#[test]
fn disks_that_somebody_uses() {
    for lock in [".lck-3409000000000000", "web-01.vmdk.lck", "web-01-flat.vmdk.lck"] {
        refuses(lock, &[lock, "in use; power the VM off"], |ground| ground.put(lock, "host"));
    }
    for running in ["web-01-1a2b3c4d.vswp", "vmx-web-01-1.vswp", "web-01.vmx.lck"] {
        refuses(running, &[running, "the VM runs; power it off"], |ground| ground.put(running, [0; 16]));
    }
    refuses("suspended", &["web-01-5e6f.vmss", "suspended", "power it off"], |ground| {
        ground.put("web-01-5e6f.vmss", [0; 16]);
    });
}

#[test]
fn a_disk_of_another_replication() {
    let mut ground = Ground::new();
    ground.home().prepare("agent-1", &ground.stream).unwrap();
    let (known, before) = (ground.stream.id, ground.everything());
    ground.stream.id = StreamId(uuid::Uuid::from_u128(6));
    ground.descriptor = "web-01//web-01.vmdk".into();
    let refused = ground.home().prepare("agent-1", &ground.stream).unwrap_err().reason;
    assert!(refused.contains(&known.to_string()) && refused.contains("move its folder out"), "{refused}");
    assert!(ground.everything() == before, "something was changed");
}

/// A name that is not right must not end in a full copy to a new disk.
#[test]
fn an_original_of_a_disk_that_the_vm_does_not_have() {
    let mut ground = Ground::new();
    ground.stream.disks[0].name = "vda".into();
    let before = ground.everything();
    let refused = ground.home().prepare("agent-1", &ground.stream).unwrap_err().reason;
    assert!(refused.contains("disk sda of VM web-01, which has no such disk but vda"), "{refused}");
    assert!(ground.everything() == before, "something was changed");
}

/// The disks before it are not created in vain.
#[test]
fn one_disk_of_several() {
    let mut ground = Ground::new();
    let mut boot = ground.stream.disks[0].clone();
    boot.name = "boot".into();
    ground.stream.vm = "web-01".into();
    ground.stream.disks.insert(0, boot);
    ground.put("web-01.vmdk.lck", "host");
    check("the second disk", &ground, &["in use"]);
}

#[test]
fn devices_whose_content_is_kept() {
    let ground = Ground::new();
    let device = ground.folder().join("device");
    fs::write(&device, vec![3; BYTES as usize / 2]).unwrap();
    let refused = |content| {
        let mut home = ground.home();
        home.originals.clear();
        let (vm, disk) = ("web-01".to_owned(), "sda".to_owned());
        home.devices = vec![DeviceTarget { vm, disk, device: device.clone(), content }];
        let before = ground.everything();
        let refused = home.prepare("agent-1", &ground.stream).unwrap_err().reason;
        assert!(ground.everything() == before, "something was changed");
        refused
    };
    assert!(refused(Content::Keep).contains("enlarge that to 8388608 bytes"));
    assert!(refused(Content::Lose).contains("enlarge it"));
    fs::write(&device, vec![3; 2 * BYTES as usize]).unwrap();
    assert!(refused(Content::Keep).contains("it is another disk"));
}
