//! The promise: what an operator asks the running master target for is what happens, and a dry run changes nothing: pins,
//! exports, restores, their undoing, and acceptance for good.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, process::Command};

use homeward::lab::{Look, image, isolate};
use homeward_tests::{ground::Had, rig::Rig, settings};
use serde_json::Value;

const VM: &str = "operator";
const BLOCKS: u64 = 4 << 10;
const OK: Option<i32> = Some(0);
const REFUSED: Option<i32> = Some(5);

/// `homeward-master-target --json …`: the exit code, and the one object that it printed.
fn run(rig: &Rig, args: &[&str]) -> (Option<i32>, Value) {
    let service = rig.lab.master_target();
    let output = Command::new(service.program())
        .arg("--config")
        .arg(service.config())
        .arg("--json")
        .args(args)
        .output();
    let output = output.unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let answer = serde_json::from_str(&stdout);
    (
        output.status.code(),
        answer.unwrap_or_else(|_| panic!("{stdout}{}", String::from_utf8_lossy(&output.stderr))),
    )
}

fn done(rig: &Rig, args: &[&str]) -> Value {
    let (code, answer) = run(rig, args);
    assert_eq!(code, OK, "{args:?}: {answer:#}");
    answer
}

fn listed(rig: &Rig, had: &Had) -> Option<Value> {
    let answer = done(rig, &["points", VM]);
    let points = answer["points"].as_array().unwrap();
    points.iter().find(|point| point["id"] == had.point.id.to_string()).cloned()
}

/// What is exported is the disk as of the point, by bytes and by the root in its certificate; nothing is overwritten.
fn exports(rig: &Rig, id: &str, then: &Path) {
    let verified = done(rig, &["verify", VM, "--point", id, "--wait"]);
    let root = &verified["verified"]["certificate"]["statement"]["disks"][0]["root"];
    assert!(root.is_string(), "{verified:#}");
    for format in ["raw", "stream-optimized"] {
        let file = rig.dir.path().join(format);
        let args = ["export", VM, "--point", id, "--format", format, file.to_str().unwrap()];
        let exported = done(rig, &args)["exported"].clone();
        assert_eq!((&exported["root"], &exported["checked"]), (root, &Value::Bool(true)));
        assert_eq!(run(rig, &args).0, REFUSED, "the file exists");
    }
    assert_eq!(image::first_difference(then, &rig.dir.path().join("raw"), &rig.stop).unwrap(), None);
}

#[test]
fn restores_pins_exports_and_acceptance_by_the_commands() {
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let rig = Rig::new(VM, BLOCKS, |_| {});
    let first = rig.start();
    let then = rig.dir.path().join("then.img");
    image::copy(rig.device.path(), &then, &rig.stop).unwrap();
    let id = first.point.id.to_string();
    exports(&rig, &id, &then);

    let flat = rig.lab.vmdks(VM).unwrap()[0].flat.clone();
    let is_as = |of| image::first_difference(of, &flat, &rig.stop).unwrap().is_none();
    rig.disks.rewrite().unwrap();
    let second = rig.had();

    done(&rig, &["pin", VM, &id]);
    assert_eq!(listed(&rig, &first).unwrap()["pinned"], true);
    done(&rig, &["unpin", VM, &id]);
    assert_eq!(listed(&rig, &first).unwrap()["pinned"], false);
    assert_eq!(run(&rig, &["pin", VM, "00000000-0000-0000-0000-000000000001"]).0, REFUSED);

    let estimate = &done(&rig, &["restore", VM, "--point", &id, "--dry-run"])["vms"][0];
    assert_eq!(estimate["fits"], true);
    assert!(is_as(rig.device.path()), "a dry run changes nothing");
    assert_eq!(run(&rig, &["restore", VM, "--undo"]).0, REFUSED);
    assert_eq!(run(&rig, &["restore", VM, "--accept"]).0, REFUSED);

    done(&rig, &["restore", VM, "--point", &id]);
    assert!(is_as(&then), "restored");
    done(&rig, &["restore", VM, "--undo"]);
    assert!(is_as(rig.device.path()), "undone");
    rig.disks.rewrite().unwrap();
    let third = rig.had();
    assert!(is_as(rig.device.path()), "replication goes on");

    done(&rig, &["restore", VM, "--point", &id]);
    done(&rig, &["restore", VM, "--accept"]);
    assert!(is_as(&then), "restored for good");
    assert!(listed(&rig, &first).is_some());
    assert!(listed(&rig, &second).is_none() && listed(&rig, &third).is_none(), "what was newer is gone");
    assert_eq!(run(&rig, &["restore", VM, "--undo"]).0, REFUSED);
    // The agent is told why it may not go on.
    rig.wait("the agent says that its VM was restored", || {
        let error = rig.lab.agent_status(VM)?.connection_error.unwrap_or_default();
        Ok(if error.contains("restore") { Look::Done(()) } else { Look::NotYet(error) })
    });
}
