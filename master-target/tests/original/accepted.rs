//! What happens to a disk that is adopted: nothing, until frames come; then what they say, and a new content id.

use std::fs;

use engine::point::{Consistency, Method};
use master_target::{
    home::{Content, DeviceTarget},
    journal::TargetDisk,
    restore::Select,
};

use crate::folder::{BYTES, Ground};

#[test]
fn it_is_a_pinned_point_before_anything_is_written_to_it() {
    let ground = Ground::new();
    let before = ground.everything();
    let home = ground.home();
    home.prepare("agent-1", &ground.stream).unwrap();
    let state = home.state(ground.stream.id).unwrap();
    let found = state.before_failback().unwrap();
    assert_eq!((found.layer, found.log_bytes, state.open), (0, 0, 1));
    assert_eq!((found.point.consistency, found.point.method), (Consistency::BeforeFailback, Method::Found));
    assert!(state.pinned.contains(&0));
    assert!(
        matches!(&state.targets[..], [TargetDisk::Vmdk { descriptor, thin: true, .. }] if descriptor == "web-01/web-01.vmdk")
    );
    let after = ground.everything();
    assert!(before.iter().all(|(path, bytes)| after[path] == *bytes), "something was changed");

    // Only its own name means it: none of the others may lead back to disks that were never the VM's.
    let select = |text: &str| text.parse::<Select>().unwrap().among(&state);
    assert_eq!(select("before-failback").unwrap(), *found);
    assert_eq!(select(&found.point.id.to_string()).unwrap(), *found);
    for other in ["latest", "latest-application-consistent", "2999-01-01T00:00:00Z"] {
        assert!(select(other).is_err(), "{other}");
    }
}

#[test]
fn opening_it_changes_the_content_id_and_no_other_byte() {
    let ground = Ground::new();
    let before = ground.everything();
    drop(ground.home().admit("agent-1", &ground.stream).unwrap());
    let after = ground.everything();
    let descriptor = ground.folder().join("web-01.vmdk");
    for (path, bytes) in &before {
        assert!(*path == descriptor || after[path] == *bytes, "{} was changed", path.display());
    }
    let text = |of: &[u8]| String::from_utf8(of.to_vec()).unwrap();
    let (old, new) =
        (text(before[&descriptor].as_ref().unwrap()), text(after[&descriptor].as_ref().unwrap()));
    let changed: Vec<_> = old.lines().zip(new.lines()).filter(|(old, new)| old != new).collect();
    let [(_, id), (_, long)] = changed[..] else { panic!("{changed:?}") };
    let id = id.strip_prefix("CID=").unwrap();
    assert!(
        id.len() == 8 && long == format!("ddb.longContentID = \"4b98b55ba6a6bc2e8fd6eb36{id}\""),
        "{changed:?}"
    );
    assert_eq!(old.lines().count(), new.lines().count());
}

#[test]
fn flat_disks_of_hosted_products_too_and_those_that_were_rounded_up() {
    let mut ground = Ground::new();
    ground.edit("createType=\"vmfs\"", "createType=\"monolithicFlat\"");
    ground.edit("VMFS \"web-01-flat.vmdk\"", "FLAT \"web-01-flat.vmdk\" 0");
    ground.stream.disks[0].bytes = BYTES - (1 << 20) + 512;
    drop(ground.home().admit("agent-1", &ground.stream).unwrap());
    assert!(ground.home().state(ground.stream.id).unwrap().before_failback().is_some());
}

#[test]
fn a_device_is_kept_only_if_that_is_wished_for() {
    for content in [Content::Lose, Content::Keep] {
        let ground = Ground::new();
        let device = ground.folder().join("device");
        fs::write(&device, vec![3; BYTES as usize]).unwrap();
        let mut home = ground.home();
        home.originals.clear();
        home.devices = vec![DeviceTarget { vm: "web-01".into(), disk: "sda".into(), device, content }];
        home.prepare("agent-1", &ground.stream).unwrap();
        let state = home.state(ground.stream.id).unwrap();
        assert_eq!(state.before_failback().is_some(), content == Content::Keep);
    }
}
