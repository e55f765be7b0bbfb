//! Drill against qemu-nbd, serving the same bytes, in turns: throughput and latency of fio's nbd engine.
//!
//! A disk is replicated, one point is sealed, and both serve what the VMDK holds: the drill of that point, and qemu-nbd
//! the flat file itself for reads and a copy of it for writes. A drill reads disks unbuffered, so as not to push out of
//! memory what replication needs; so does qemu-nbd here (`--cache=none`). What is written is buffered with both: a
//! drill's overlay is thrown away, and qemu-nbd's default is `--cache=writeback`. Every pair of slices is measured back
//! to back, the first alternating.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use engine::service::{quantity::Size, shutdown::Shutdown};
use homeward::lab::{
    self, Lab, Look, Options, Tracker, Vm,
    tool::{self, Tool},
};
use serde::Serialize;

use crate::{disk::Scratch, figures::Spread, fio};

const VM: &str = "bench";

/// A way of reading or writing.
struct Mode {
    name: &'static str,
    writes: bool,
    options: [&'static str; 3],
}

const fn mode(name: &'static str, writes: bool, options: [&'static str; 3]) -> Mode {
    Mode { name, writes, options }
}

const MODES: [Mode; 6] = [
    mode("random 4k reads, one at a time", false, ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    mode("random 4k reads, 16 at once", false, ["--rw=randread", "--bs=4k", "--iodepth=16"]),
    mode("sequential 256k reads, 8 at once", false, ["--rw=read", "--bs=256k", "--iodepth=8"]),
    mode("random 4k writes, one at a time", true, ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    mode("random 4k writes, 16 at once", true, ["--rw=randwrite", "--bs=4k", "--iodepth=16"]),
    mode("sequential 256k writes, 8 at once", true, ["--rw=write", "--bs=256k", "--iodepth=8"]),
];

/// The figures. Ratios are of the drill to qemu-nbd: above 1 the drill is faster.
#[derive(Debug, Serialize)]
pub struct Report {
    disk_bytes: u64,
    rounds: u32,
    /// The smallest of the medians of the ways of reading.
    read_ratio: f64,
    /// The same of writing.
    write_ratio: f64,
    modes: Vec<Figures>,
}

#[derive(Debug, Serialize)]
struct Figures {
    name: &'static str,
    writes: bool,
    /// Of throughput, pair by pair.
    ratio: Spread,
    drill: Medians,
    qemu_nbd: Medians,
}

#[derive(Debug, Serialize)]
struct Medians {
    bytes_per_second: f64,
    mean_latency_us: f64,
}

/// `rounds` pairs of slices of each way.
pub fn run(scratch: &Scratch, rounds: u32, slice: Duration, stop: &Shutdown) -> anyhow::Result<Report> {
    tool::require(&["qemu-nbd"])?;
    let device = scratch.device()?;
    fio::fill(device.path(), scratch.bytes, stop)?;
    let vm = Vm { disks: vec![device.path().into()], ..Vm::new(VM, Tracker::Ebpf) };
    let options = Options::new(lab::build_services(lab::is_release())?);
    let lab = Lab::new(device.dir(), Options { vms: vec![vm], stop: stop.clone(), ..options })?;
    lab.start()?;
    lab.point_now(VM)?;

    let flat = lab.vmdks(VM)?.into_iter().next().context("the VM has no VMDK")?.flat;
    let copy = device.dir().join("copy.img");
    fs::copy(&flat, &copy)?;
    let socket = |name: &str| device.dir().join(format!("{name}.sock"));
    let drills = [false, true].map(|writable| {
        let at = socket(if writable { "drill-writes" } else { "drill-reads" });
        lab.drill(VM, "latest", &at, writable).map(|_| at)
    });
    let [drill_reads, drill_writes] = drills;
    let (drill_reads, drill_writes) = (drill_reads?, drill_writes?);
    let peer_reads = QemuNbd::serve(&flat, &socket("qemu-reads"), &["--read-only", "--cache=none"], stop)?;
    let peer_writes = QemuNbd::serve(&copy, &socket("qemu-writes"), &["--cache=writeback"], stop)?;

    let mut modes = Vec::new();
    for mode in &MODES {
        let (ours, theirs) = match mode.writes {
            true => (&drill_writes, &peer_writes.socket),
            false => (&drill_reads, &peer_reads.socket),
        };
        let (mut drill, mut peer) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let mut ours = || -> anyhow::Result<()> {
                drill.push(measure(mode, ours, scratch.bytes, slice, stop)?);
                Ok(())
            };
            let theirs = || measure(mode, theirs, scratch.bytes, slice, stop);
            if round % 2 == 0 {
                ours()?;
                peer.push(theirs()?);
            } else {
                peer.push(theirs()?);
                ours()?;
            }
        }
        let ratio = Spread::of(drill.iter().zip(&peer).map(|(ours, theirs)| ours.0 / theirs.0));
        let (drill, qemu_nbd) = (medians(&drill), medians(&peer));
        modes.push(Figures { name: mode.name, writes: mode.writes, ratio, drill, qemu_nbd });
    }
    let worst = |writes| {
        let medians = modes.iter().filter(|mode| mode.writes == writes).map(|mode| mode.ratio.median);
        medians.fold(f64::INFINITY, f64::min)
    };
    let (read_ratio, write_ratio) = (worst(false), worst(true));
    Ok(Report { disk_bytes: scratch.bytes, rounds, read_ratio, write_ratio, modes })
}

/// Bytes per second and mean latency in microseconds.
fn measure(
    mode: &Mode,
    socket: &Path,
    bytes: u64,
    slice: Duration,
    stop: &Shutdown,
) -> anyhow::Result<(f64, f64)> {
    let done = Tool::new("fio")
        .args(["--name=drill", "--ioengine=nbd", "--thread", "--norandommap", "--randseed=1", "--time_based"])
        .args([format!("--uri=nbd+unix:///?socket={}", socket.display()), format!("--size={bytes}")])
        .args([format!("--runtime={}ms", slice.as_millis()), "--output-format=json".into()])
        .args(mode.options)
        .until(stop)
        .run()?;
    // The engine says first to whom it is connected.
    let report = done.stdout.find('{').map_or("", |begin| &done.stdout[begin..]);
    let report: serde_json::Value = serde_json::from_str(report).context("fio's report is no JSON")?;
    let job = &report["jobs"][0][if mode.writes { "write" } else { "read" }];
    let number = |value: &serde_json::Value| value.as_f64().context("fio's report lacks a figure");
    Ok((number(&job["bw_bytes"])?, number(&job["lat_ns"]["mean"])? / 1000.0))
}

fn medians(slices: &[(f64, f64)]) -> Medians {
    Medians {
        bytes_per_second: Spread::of(slices.iter().map(|slice| slice.0)).median,
        mean_latency_us: Spread::of(slices.iter().map(|slice| slice.1)).median,
    }
}

/// A qemu-nbd that serves until it is dropped.
struct QemuNbd {
    child: Child,
    socket: PathBuf,
}

impl QemuNbd {
    fn serve(image: &Path, socket: &Path, options: &[&str], stop: &Shutdown) -> anyhow::Result<Self> {
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=8", "--format=raw", "--socket"])
            .arg(socket)
            .args(options)
            .arg(image)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start qemu-nbd")?;
        let served = Self { child, socket: socket.to_owned() };
        lab::wait_until(stop, "qemu-nbd", Duration::from_secs(10), || {
            Ok(if socket.exists() { Look::Done(()) } else { Look::NotYet("no socket".into()) })
        })?;
        Ok(served)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        // Ended already if it has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Drill against qemu-nbd, a disk of {}, {} pairs each:",
            Size(self.disk_bytes),
            self.rounds
        )?;
        for Figures { name, ratio, drill, qemu_nbd, .. } in &self.modes {
            writeln!(
                f,
                "  {name:<34} {:.2} (quartiles {:.2} to {:.2}): {:.1} against {:.1} MiB/s, {:.0} against {:.0} us",
                ratio.median,
                ratio.q1,
                ratio.q3,
                drill.bytes_per_second / 1048576.0,
                qemu_nbd.bytes_per_second / 1048576.0,
                drill.mean_latency_us,
                qemu_nbd.mean_latency_us,
            )?;
        }
        writeln!(f, "  reads {:.2}, writes {:.2} (the worst of each)", self.read_ratio, self.write_ratio)
    }
}
