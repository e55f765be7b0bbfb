//! The promise: a drill shows the disks of its point, exactly, to programs of other people's making, while the VM writes
//! and points go on; what is written in it stays in it, and is gone with it, however it ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use engine::{
    net::{Identity, Role},
    units::BLOCK_BYTES,
};
use homeward::{
    lab::{Lab, isolate, tool::Tool},
    pki::{self, Validity},
};
use homeward_tests::{
    ground::Had,
    load::{Load, Plan},
    rig::Rig,
    settings,
};

const BLOCKS: u64 = 4 << 10;

/// Bytes of zeros at the beginning of a disk.
const HOLE: u64 = 1 << 20;

#[test]
fn drills_show_their_points_while_replication_goes_on() {
    const VM: &str = "drill";
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let mut rng = settings::rng(VM);
    let rig = Rig::new(VM, BLOCKS, |_| {});
    let (lab, dir) = (&rig.lab, rig.dir.path());
    let mut points = vec![rig.start()];
    let plan = Plan { threads: 4, blocks: 0..BLOCKS, pace: Duration::from_millis(2) };
    let load = Load::start(&rig.disks, &plan, &mut rng);
    points.extend([rig.had(), rig.had()]);

    // An older point and the newest, each to look at and to write to, all at once.
    let mut drills = Vec::new();
    for (name, had) in [("older", &points[1]), ("newest", &points[2])] {
        for writable in [false, true] {
            let socket = dir.join(format!("{name}-{writable}.sock"));
            drills.push((had.clone(), lab.drill(VM, &id(had), &socket, writable).unwrap()));
        }
    }
    let copies: Vec<_> = drills.iter().map(|(_, drill)| copy(dir, &drill.disks[0].uri)).collect();
    let noise = ["randwrite", "--bs=4k", "--size=16M", "--io_size=4M", "--iodepth=8", "--name=noise"];
    for (had, drill) in &drills {
        let writes = Tool::new("fio").arg("--ioengine=nbd").arg(format!("--uri={}", drill.disks[0].uri));
        let written = writes.arg(format!("--rw={}", noise[0])).args(&noise[1..]).run();
        assert_eq!(written.is_ok(), drill.id % 2 == 0, "{had:?}: only every other one takes writes");
    }
    points.push(rig.had());
    // More was written and sealed meanwhile: what a drill shows has not changed, but for what was written to it.
    for ((had, drill), before) in drills.iter().zip(&copies) {
        rig.disks.history.check(std::slice::from_ref(before), had.from..=had.until).unwrap();
        let after = copy(dir, &drill.disks[0].uri);
        assert_eq!(*before == after, drill.id % 2 == 1);
    }
    assert!(copies[0] == copies[1] && copies[2] == copies[3] && copies[0] != copies[2]);
    let overlays: Vec<u64> = lab.drills().unwrap().iter().map(|drill| drill.overlay_bytes).collect();
    assert!(overlays[0] == 0 && overlays[1] >= 1 << 20, "{overlays:?}");
    lab.stop_drill(drills[1].1.id).unwrap();
    assert_eq!(lab.drills().unwrap().len(), 3);
    // A file without a name takes no name of the folder, and so is gone when the process is.
    assert_eq!(fs::read_dir(lab.layout().dir("drills")).unwrap().count(), 0);
    lab.master_target().restart().unwrap();
    assert_eq!(lab.drills().unwrap().len(), 0);
    load.stop();
    points.push(rig.had());
    rig.check(&points);
}

#[test]
fn a_drill_in_the_foreground_where_no_service_runs() {
    const VM: &str = "drill-alone";
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let rig = Rig::new(VM, BLOCKS, |_| {});
    // What reads as zeros is a hole of the thin VMDK.
    let disk = fs::OpenOptions::new().write(true).open(rig.device.path()).unwrap();
    disk.write_all_at(&vec![0; HOLE as usize], 0).unwrap();
    disk.sync_all().unwrap();
    let had = rig.start();
    rig.lab.master_target().stop().unwrap();
    let socket = rig.dir.path().join("alone.sock");
    let mut drill = Command::new(rig.lab.master_target().program())
        .args(["--json", "--config"])
        .arg(rig.lab.master_target().config())
        .args(["drill", VM, "--point", &id(&had), "--socket"])
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !socket.exists() {
        assert!(drill.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let bytes = copy(rig.dir.path(), &uri);
    let map = Tool::new("nbdinfo").args(["--map", "--totals", &uri]).run().unwrap().stdout;
    assert!(map.lines().any(|line| line.contains(&HOLE.to_string()) && line.contains("hole")), "{map}");
    let interrupted = rustix::process::Pid::from_child(&drill);
    rustix::process::kill_process(interrupted, rustix::process::Signal::INT).unwrap();
    assert!(drill.wait().unwrap().success());
    assert!(!socket.exists());
    assert!(bytes == fs::read(rig.device.backing()).unwrap(), "not the disk of {had:?}");
}

#[test]
fn from_another_machine_only_with_tls_and_an_operators_certificate() {
    const VM: &str = "drill-tls";
    if !settings::is_root(VM) {
        return;
    }
    isolate().unwrap();
    let rig = Rig::new(VM, BLOCKS, |_| {});
    let had = rig.start();
    // Not loopback alone.
    let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap();
    let at = drill_at(&rig.lab, VM, free);
    let [operator, agent] = [Role::Operator, Role::Agent].map(|role| keys(&rig.lab, role));
    let look = |tls: Option<&Path>| {
        let command = Tool::new("qemu-img").args(["convert", "-O", "raw", "--image-opts"]);
        let image = format!("driver=nbd,host=127.0.0.1,port={},export=disk0", at.port());
        let copy = rig.dir.path().join("copy.img");
        match tls {
            None => command.arg(image).arg(copy).run().map(drop),
            Some(dir) => {
                let keys =
                    format!("tls-creds-x509,id=tls,endpoint=client,sanity-check=off,dir={}", dir.display());
                let image = format!("{image},tls-creds=tls,tls-hostname=homeward.internal");
                command.arg(image).args(["--object", &keys]).arg(copy).run().map(drop)
            }
        }
    };
    let refused = look(None).unwrap_err().to_string();
    assert!(refused.contains("start TLS first") || refused.contains("TLS"), "{refused}");
    look(Some(&agent)).unwrap_err();
    look(Some(&operator)).unwrap();
    let bytes = fs::read(rig.dir.path().join("copy.img")).unwrap();
    rig.disks.history.check(&[bytes], had.from..=had.until).unwrap();
}

fn id(had: &Had) -> String {
    had.point.id.to_string()
}

/// What a drill's disk holds.
fn copy(dir: &Path, uri: &str) -> Vec<u8> {
    let file = dir.join("copy.img");
    Tool::new("nbdcopy").arg(uri).arg(&file).run().unwrap();
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(bytes.len() as u64, BLOCKS * BLOCK_BYTES);
    bytes
}

/// Drills with the command, as an operator does.
fn drill_at(lab: &Lab, vm: &str, free: SocketAddr) -> SocketAddr {
    let service = lab.master_target();
    Tool::new(&service.program().display().to_string())
        .arg("--config")
        .arg(service.config())
        .args(["drill", vm, "--listen", &free.to_string()])
        .run()
        .unwrap();
    free
}

/// A folder with the keys of a client, by the names that QEMU looks for.
fn keys(lab: &Lab, role: Role) -> PathBuf {
    let dir = lab.layout().dir(&format!("client-{role}"));
    let identity = Identity::new(role, "alice").unwrap();
    let files = pki::issue(&lab.layout().dir("keys"), &identity, &dir, Validity::days(1)).unwrap();
    for (file, name) in
        [(files.ca, "ca-cert.pem"), (files.cert, "client-cert.pem"), (files.key, "client-key.pem")]
    {
        fs::rename(file, dir.join(name)).unwrap();
    }
    dir
}
