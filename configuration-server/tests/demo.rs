//! `homeward demo` as users run it: as root and as nobody, to its end, interrupted, and killed.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use engine::service::shutdown::Shutdown;
use homeward::lab::{self, Look, build_services, tool};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

const SIZE: &str = "96MiB";

/// Long enough for a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(300);

/// A folder with the programs, and one for the demo to work in; everybody may use both.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let built = build_services(false).unwrap();
        // Not where the programs are built: others than their owner may have no access.
        let place = Self(tempfile::tempdir_in("/var/tmp").unwrap());
        for dir in [place.0.path(), &place.bin(), &place.tmp()] {
            fs::create_dir_all(dir).unwrap();
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let services = ["homeward-agent", "homeward-process-server", "homeward-master-target"];
        let from =
            services.map(|name| built.join(name)).into_iter().chain([env!("CARGO_BIN_EXE_homeward").into()]);
        for program in from {
            fs::copy(&program, place.bin().join(program.file_name().unwrap())).unwrap();
        }
        place
    }

    fn bin(&self) -> PathBuf {
        self.0.path().join("bin")
    }

    fn tmp(&self) -> PathBuf {
        self.0.path().join("tmp")
    }

    /// The demo, about to run; `nobody` only as root.
    fn demo(&self, nobody: bool) -> Command {
        let program = self.bin().join("homeward");
        let mut command = if nobody {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.args(["demo", "--json", "--size", SIZE, "--points", "3"]);
        // Not from cargo: it must not build anything.
        command.env_remove("CARGO").env("TMPDIR", self.tmp());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Waits until something exists in the demo's folder whose name begins with `name`.
    fn wait_for(&self, demo: &mut Child, name: &str) {
        lab::wait_until(&Shutdown::manual(), name, LIMIT, || {
            assert!(demo.try_wait().unwrap().is_none(), "the demo ended before there was {name}");
            let found = glob(&self.tmp(), 4)
                .iter()
                .any(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)));
            Ok(if found { Look::Done(()) } else { Look::NotYet("not there".into()) })
        })
        .unwrap();
    }

    /// Whether a process, a loop device or a mount of the demo is left.
    fn left_over(&self) -> Vec<String> {
        let place = self.0.path().to_string_lossy().into_owned();
        let read = |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let mut left = Vec::new();
        for process in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let line = read(process.path().join("cmdline"));
            if line.contains(&place) {
                left.push(format!("process {:?}: {line}", process.file_name()));
            }
        }
        for device in fs::read_dir("/sys/block").unwrap().filter_map(Result::ok) {
            if read(device.path().join("loop/backing_file")).contains(&place) {
                left.push(format!("device {:?}", device.file_name()));
            }
        }
        left.extend(
            read("/proc/self/mountinfo".into()).lines().filter(|line| line.contains(&place)).map(Into::into),
        );
        left
    }

    #[track_caller]
    fn assert_nothing_runs(&self) {
        let look = || {
            let left = self.left_over();
            Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(left.join("; ")) })
        };
        lab::wait_until(&Shutdown::manual(), "nothing is left over", Duration::from_secs(20), look).unwrap();
    }

    #[track_caller]
    fn assert_clean(&self) {
        self.assert_nothing_runs();
        assert_eq!(glob(&self.tmp(), 1), Vec::<PathBuf>::new());
    }
}

/// What is below `dir`, `depth` levels deep.
fn glob(dir: &Path, depth: u32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let entries = entries.filter_map(Result::ok).map(|entry| entry.path());
    entries
        .flat_map(|path| if depth > 1 { [glob(&path, depth - 1), vec![path]].concat() } else { vec![path] })
        .collect()
}

/// Whether the tools are there, and root if that is needed; says so if not.
fn can_run(as_root: bool) -> bool {
    if let Err(missing) = tool::require(&lab::ext4::TOOLS) {
        println!("skipped: {missing}");
        return false;
    }
    if as_root && !geteuid().is_root() {
        println!("skipped: the demo with eBPF needs root");
        return false;
    }
    true
}

#[track_caller]
fn assert_held(output: &Output, tracker: &str, points: std::ops::RangeInclusive<usize>) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert_eq!(out.lines().count(), 1, "{out}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["ok"], &report["tracker"]), (&true.into(), &tracker.into()), "{report}");
    let killed = report["killed"].as_array().unwrap();
    assert_eq!(killed.len(), 3, "{report}");
    let number = |name: &str| report[name].as_f64().unwrap();
    assert!(number("logical_bytes") >= 96.0 * 1048576.0 && number("seconds") > 0.0, "{report}");
    assert!(number("wire_bytes") > 0.0 && number("wire_bytes") < number("logical_bytes"), "{report}");
    let sealed = report["points"].as_array().unwrap();
    assert!(points.contains(&sealed.len()), "{report}");
    for point in sealed {
        assert_eq!(
            (&point["verified"], &point["kind"]),
            (&true.into(), &"crash-consistent".into()),
            "{point}"
        );
        assert!(
            point["barrier_tries"].as_u64().unwrap() > 0 && point["records"].as_u64().unwrap() > 0,
            "{point}"
        );
        assert!(point["frozen_ms"].is_number() && point["id"].is_string(), "{point}");
        assert!(point["sealed_at"].as_str() >= point["taken_at"].as_str(), "{point}");
    }
    assert!(sealed.iter().any(|point| point["paused"] == true), "{report}");
}

#[test]
fn everything_holds_as_root() {
    if can_run(true) {
        let place = Place::new();
        assert_held(&place.demo(false).output().unwrap(), "ebpf", 4..=4);
        place.assert_clean();
    }
}

#[test]
fn everything_holds_for_an_ordinary_user() {
    if can_run(false) {
        let place = Place::new();
        // One more if the disk happened to be at rest.
        assert_held(&place.demo(geteuid().is_root()).output().unwrap(), "scan", 3..=4);
        place.assert_clean();
    }
}

#[test]
fn an_interrupt_at_any_moment_leaves_nothing() {
    if !can_run(false) {
        return;
    }
    let place = Place::new();
    let root = geteuid().is_root();
    // While the disk is filled, during the full copy, after a point, while one is verified.
    for (moment, signal, nobody) in [
        ("disk.img", Signal::INT, false),
        ("disk.img", Signal::HUP, root),
        ("master-target.log", Signal::TERM, false),
        ("reference", Signal::INT, root),
        ("check", Signal::INT, false),
    ] {
        let mut demo = place.demo(nobody).spawn().unwrap();
        place.wait_for(&mut demo, moment);
        kill_process(Pid::from_child(&demo), signal).unwrap();
        let output = demo.wait_with_output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(130), "{moment}: {out}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&report["ok"], &report["code"]),
            (&false.into(), &"interrupted".into()),
            "{moment}: {out}"
        );
        place.assert_clean();
    }
}

#[test]
fn what_cannot_be_is_said_before_anything_is_done() {
    let homeward = || Command::new(env!("CARGO_BIN_EXE_homeward"));
    for (args, code, expected) in [
        (["--size", "1MiB"], 2, "smallest disk"),
        (["--size", "lots"], 2, "is no size"),
        (["--points", "0"], 2, "1 to 50"),
        (["--keep", "/proc"], 5, "/proc"),
        (["--size", "100TiB"], 5, "--size"),
    ] {
        let output = homeward().arg("demo").args(args).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.contains(expected), "{args:?}: {message}");
    }
}
