//! The promise: a replicated Debian boots from a drill. A running system's disk is protected; while replication and
//! points go on, an older point and the newest one are booted in QEMU, each from its drill; both reach their login
//! and show what the system had written before that point. Nothing that they write reaches the VMDK.
//!
//! Installs a Debian from its mirror (a minute or two), so it runs on demand only:
//! `cargo test --release -p homeward-tests --test boot -- --ignored --nocapture`, as root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use engine::service::shutdown::Shutdown;
use homeward::lab::{
    Lab, Look, LoopDevice, Mount, Options, Tracker, Vm, isolate,
    tool::{self, Tool},
};
use homeward_tests::{
    churn::Churn,
    ground::{had_within, options},
    settings,
};

const VM: &str = "debian";
const DISK: u64 = 1536 << 20;
const MIRROR: &str = "http://deb.debian.org/debian";
const PACKAGES: &str = "linux-image-cloud-amd64,initramfs-tools,systemd-sysv";
const POINT: Duration = Duration::from_secs(300);

/// Emulated, for KVM within a virtual machine is not to be relied on: a boot takes a minute or more.
const BOOT: Duration = Duration::from_secs(900);

#[test]
#[ignore = "installs a Debian from its mirror"]
fn an_older_point_and_the_newest_reach_their_login() {
    if !settings::is_root(VM) {
        return;
    }
    let tools = ["debootstrap", "extlinux", "qemu-system-x86_64", "nbdcopy"];
    tool::require(&tools).unwrap_or_else(|error| panic!("{error}"));
    isolate().unwrap();
    let mut rng = settings::rng(VM);
    let stop = Shutdown::manual();
    let dir = tempfile::tempdir().unwrap();
    let disk = partitioned(&dir.path().join("disk.img"));
    let mount = install(&disk, &dir.path().join("mnt"));

    let vm = Vm { disks: vec![disk.path().into()], ..Vm::new(VM, Tracker::Ebpf) };
    let lab = Lab::new(dir.path(), Options { vms: vec![vm], ..options(&stop) }).unwrap();
    mark(&mount, "older");
    lab.start().unwrap();
    let mut churn = Churn::start(&mount.point().join("churn"), 2, &mut rng).unwrap();
    let older = had_within(&lab, &stop, VM, POINT).point;
    mark(&mount, "newest");
    let newest = had_within(&lab, &stop, VM, POINT).point;
    mark(&mount, "later");

    let boots = [("older", older.id), ("newest", newest.id)].map(|(name, point)| {
        let socket = dir.path().join(format!("{name}.sock"));
        let drill = lab.drill(VM, &point.to_string(), &socket, true).unwrap();
        let machine = Machine::boot(&drill.disks[0].uri, &dir.path().join(format!("{name}.console")));
        (name, drill, machine)
    });
    let mut points = 0;
    for (name, drill, machine) in boots {
        let began = Instant::now();
        lab.wait(&format!("the login of {name}"), BOOT, || {
            let _ = had_within(&lab, &stop, VM, POINT);
            points += 1;
            let console = machine.console();
            let there = console.contains(&format!("marker: {name}")) && console.contains("drill login:");
            Ok(if there { Look::Done(()) } else { Look::NotYet(tail(&console)) })
        })
        .unwrap_or_else(|error| panic!("{error}"));
        println!("{VM}: {name} reached its login; {:.0} s waited", began.elapsed().as_secs_f64());
        let console = machine.console();
        let others = ["older", "newest", "later"].into_iter().filter(|other| *other != name);
        others.for_each(|other| assert!(!console.contains(&format!("marker: {other}")), "{console}"));
        drop(machine);
        let written = lab.stop_drill(drill.id).unwrap().overlay_bytes;
        println!("{VM}: it wrote {written} bytes to its drill");
        assert!(written > 0, "the system that was booted has written nothing");
    }
    println!("{VM}: {points} points were sealed meanwhile");

    // The disk at rest, its newest point, and the VMDK are the same: nothing of the drills is in it.
    churn.stop();
    drop(mount);
    let _ = had_within(&lab, &stop, VM, POINT);
    lab.master_target().stop().unwrap();
    let flat = dir.path().join("datastore").join(VM).join(format!("{VM}-flat.vmdk"));
    Tool::new("cmp").arg(disk.path()).arg(flat).run().unwrap();
}

/// A disk with one bootable partition, from 1 MiB on, and the code that boots it.
fn partitioned(path: &Path) -> LoopDevice {
    let file = File::create_new(path).unwrap();
    file.set_len(DISK).unwrap();
    let mut record = fs::read("/usr/lib/EXTLINUX/mbr.bin").unwrap();
    record.resize(512, 0);
    let (start, sectors) = (2048u32, (DISK / 512) as u32 - 2048);
    // Active; of type Linux; addresses of cylinders are for machines of another age.
    record[446..454].copy_from_slice(&[0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    record[454..458].copy_from_slice(&start.to_le_bytes());
    record[458..462].copy_from_slice(&sectors.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&record, 0).unwrap();
    LoopDevice::with_partitions(path).unwrap()
}

/// Debian with its kernel and boot loader, whose console is the serial one.
fn install(disk: &LoopDevice, at: &Path) -> Mount {
    // extlinux knows not all features of ext4.
    let features = ["-q", "-L", "debian", "-O", "^64bit,^metadata_csum"];
    Tool::new("mkfs.ext4").args(features).arg(disk.partition(1)).run().unwrap();
    let mount = Mount::new(&disk.partition(1), at, "").unwrap();
    Tool::new("debootstrap")
        .args(["--variant=minbase", "--include", PACKAGES, "bookworm"])
        .arg(at)
        .arg(MIRROR)
        .run()
        .unwrap();
    let put = |name: &str, text: &str| fs::write(at.join(name), text).unwrap();
    put("etc/hostname", "drill\n");
    put("etc/fstab", "LABEL=debian / ext4 defaults 0 1\n");
    fs::create_dir(at.join("boot/extlinux")).unwrap();
    put(
        "boot/extlinux/extlinux.conf",
        "SERIAL 0\nDEFAULT debian\nLABEL debian\nLINUX /vmlinuz\nINITRD /initrd.img\n\
         APPEND root=LABEL=debian rw console=ttyS0\n",
    );
    Tool::new("extlinux").arg("--install").arg(at.join("boot/extlinux")).run().unwrap();
    mount
}

/// Has the system say at its login which it is.
fn mark(mount: &Mount, name: &str) {
    let issue = mount.point().join("etc/issue");
    let mut file = File::create(issue).unwrap();
    writeln!(file, "marker: {name}").unwrap();
    file.sync_all().unwrap();
    mount.sync().unwrap();
}

/// A machine that boots from a drill; ends when it is dropped.
struct Machine {
    child: Child,
    console: PathBuf,
}

impl Machine {
    fn boot(uri: &str, console: &Path) -> Self {
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-machine",
                "accel=tcg",
                "-m",
                "512",
                "-display",
                "none",
                "-monitor",
                "none",
                "-nic",
                "none",
            ])
            .args(["-drive", &format!("file={uri},format=raw,if=virtio")])
            .args(["-serial", &format!("file:{}", console.display())])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, console: console.into() }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Ended already if the machine has switched itself off.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().rev().take(3).collect();
    format!("its console says {lines:?}")
}
