//! The promise: file systems are frozen for a bounded time, whatever happens, and labels are true. Here the agent's own
//! program, configuration, state, log and admin socket, and its hooks, lie on the file system that it freezes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs::{self, File},
    io::{Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use engine::{
    limits,
    point::{Consistency, FailedStep, Outcome, Stage},
    service::shutdown::Shutdown,
};
use homeward::lab::{Lab, LoopDevice, Mount, Options, Tracker, Vm, isolate, tool::Tool};
use homeward_tests::{
    checkers::FileSystem,
    ground::{Had, held_within, options},
    settings,
};
use rustix::process::{Pid, Signal, kill_process};

const TEST: &str = "frozen-home";
const POINT: Duration = Duration::from_secs(300);
/// What a write may take besides the freeze, on a busy machine that also syncs.
const SLACK: Duration = Duration::from_secs(2);

/// Writes a byte again and again, as the VM's applications might, and notes how long each write took.
struct Writer {
    stop: Arc<AtomicBool>,
    /// When the write under way began, if one is, and the longest.
    state: Arc<Mutex<(Option<Instant>, Duration)>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        let (stop, state) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new((None, Duration::ZERO))));
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&state));
        let thread = thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let began = Instant::now();
                shared.lock().unwrap().0 = Some(began);
                file.rewind().unwrap();
                file.write_all(b"x").unwrap();
                let mut state = shared.lock().unwrap();
                *state = (None, state.1.max(began.elapsed()));
                drop(state);
                thread::sleep(Duration::from_micros(200));
            }
        });
        Self { stop, state, thread: Some(thread) }
    }

    /// Waits until a write has been stuck for a few milliseconds: a freeze, most likely.
    fn await_stuck(&self) {
        let until = Instant::now() + POINT;
        let stuck =
            || self.state.lock().unwrap().0.is_some_and(|since| since.elapsed() > Duration::from_millis(8));
        while !stuck() {
            assert!(Instant::now() < until, "nothing was ever frozen");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the write under way is done.
    fn await_going_on(&self) {
        let since = self.state.lock().unwrap().0;
        let until = Instant::now() + limits::FREEZE + SLACK;
        while since.is_some() && self.state.lock().unwrap().0 == since {
            assert!(Instant::now() < until, "a write is stuck: still frozen");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn longest(&self) -> Duration {
        self.state.lock().unwrap().1
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn an_agent_that_lives_on_what_it_freezes() {
    if !settings::is_root(TEST) {
        return;
    }
    isolate().unwrap();
    let stop = Shutdown::manual();
    let dir = tempfile::tempdir().unwrap();
    let disk = LoopDevice::create(&dir.path().join("disk.img"), 1 << 30).unwrap();
    FileSystem::Ext4.make(disk.path()).unwrap();
    let mount = Mount::new(disk.path(), &dir.path().join("m"), "").unwrap();
    // Everything of the lab is on the disk, but what grows with replication.
    let home = mount.point().join("h");
    fs::create_dir(&home).unwrap();
    let outside: Vec<Mount> = ["spool", "journal", "datastore"]
        .iter()
        .map(|name| {
            let real = dir.path().join(name);
            fs::create_dir(&real).unwrap();
            Mount::new(&real, &home.join(name), "bind").unwrap()
        })
        .collect();
    let hook = hook(&home);
    let options = options(&stop);
    let binaries = home.join("bin");
    fs::create_dir(&binaries).unwrap();
    for name in ["homeward-agent", "homeward-process-server", "homeward-master-target"] {
        fs::copy(options.binaries.join(name), binaries.join(name)).unwrap();
    }
    let vm = Vm {
        disks: vec![disk.path().into()],
        hooks: Some(vec![hook.clone()]),
        ..Vm::new(TEST, Tracker::Ebpf)
    };
    // The more is logged, the more would be stuck.
    let lab = Lab::new(&home, Options { vms: vec![vm], binaries, log: "debug".into(), ..options }).unwrap();
    lab.start().unwrap();
    let writer = Writer::start(&mount.point().join("written"));
    let mode = |mode: &str| fs::write(home.join("mode"), mode).unwrap();

    // As it should be, and hooks that fail.
    let mut frozen = 0;
    for (script, failed) in [
        ("exit 0", None),
        ("[ $1 = --post ] || exit 7", Some((Stage::Pre, Outcome::Exited(7)))),
        ("exit 0", None),
        ("[ $1 = --pre ] || kill -KILL $$", Some((Stage::Post, Outcome::Killed(9)))),
        ("exit 0", None),
    ] {
        mode(script);
        let had = label(&lab, &stop, &hook, failed);
        frozen += u32::from(had.point.frozen_us > 0);
    }
    println!("{TEST}: the longest write took {:?}", writer.longest());
    assert!(frozen >= 3, "{frozen} freezes");

    // The agent is killed, and stopped, while it freezes; the hook's notes tell that nobody is left holding.
    mode("exit 0");
    let notes = || fs::read_to_string(home.join("notes")).unwrap();
    let count = |what: &str| notes().lines().filter(|line| *line == what).count();
    for signal in [Signal::KILL, Signal::STOP, Signal::KILL] {
        let agent = lab.agent(TEST).unwrap();
        let pid = Pid::from_raw(agent.pid().unwrap() as i32).unwrap();
        thread::scope(|scope| {
            let asked = scope.spawn(|| lab.application_point_now(TEST));
            let pre = count("--pre");
            until("the hook holds", || count("--pre") > pre);
            writer.await_stuck();
            kill_process(pid, signal).unwrap();
            writer.await_going_on();
            until("applications are let go", || count("--post") == count("--pre"));
            if signal == Signal::STOP {
                kill_process(pid, Signal::CONT).unwrap();
                if let Ok(point) = asked.join().unwrap() {
                    let failed = point.application.clone().unwrap().failed;
                    assert_eq!(
                        failed.is_some(),
                        point.consistency == Consistency::CrashConsistent,
                        "{point:?}"
                    );
                }
            } else {
                assert!(asked.join().unwrap().is_err(), "nobody is there to answer");
                agent.restart().unwrap();
            }
        });
    }
    label(&lab, &stop, &hook, None);
    let longest = writer.longest();
    println!("{TEST}: the longest write took {longest:?} in all");
    assert!(longest < limits::FREEZE + SLACK, "a write was stuck for {longest:?}");
    drop(writer);
    drop(lab);
    drop(outside);
}

/// Asks for a point until it is not the freeze that failed, which a busy machine may bring about; checks its label.
fn label(lab: &Lab, stop: &Shutdown, hook: &Path, expected: Option<(Stage, Outcome)>) -> Had {
    for _ in 0..20 {
        let had = held_within(lab, stop, TEST, POINT);
        let failed = had.point.application.clone().expect("applications were to hold").failed;
        let consistency =
            if failed.is_none() { Consistency::ApplicationConsistent } else { Consistency::CrashConsistent };
        assert_eq!(had.point.consistency, consistency);
        if failed.as_ref().is_some_and(|step| step.stage == Stage::Freeze) {
            println!("{TEST}: {}", failed.unwrap());
            continue;
        }
        let step = hook.display().to_string();
        assert_eq!(failed, expected.map(|(stage, outcome)| FailedStep { step, stage, outcome }));
        return had;
    }
    panic!("freezing fails too often");
}

/// Does what the file `mode` says, and notes its runs.
fn hook(home: &Path) -> PathBuf {
    let path = home.join("hook");
    let home = home.display();
    fs::write(&path, format!("#!/bin/sh\necho $1 >> {home}/notes\neval \"$(cat {home}/mode)\"\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(Path::new(&home.to_string()).join("mode"), "exit 0").unwrap();
    path
}

fn until(what: &str, done: impl Fn() -> bool) {
    let limit = Instant::now() + POINT;
    while !done() {
        assert!(Instant::now() < limit, "{what}: not within {POINT:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// fuse2fs knows no freezing.
#[test]
fn what_cannot_be_frozen_makes_no_application_consistent_point() {
    const TEST: &str = "unfreezable";
    if !settings::is_root(TEST) {
        return;
    }
    isolate().unwrap();
    let stop = Shutdown::manual();
    let dir = tempfile::tempdir().unwrap();
    let disk = LoopDevice::create(&dir.path().join("disk.img"), 64 << 20).unwrap();
    FileSystem::Ext4.make(disk.path()).unwrap();
    let point = dir.path().join("m");
    fs::create_dir(&point).unwrap();
    Tool::new("fuse2fs").arg(disk.path()).arg(&point).run().unwrap();
    let vm = Vm { disks: vec![disk.path().into()], hooks: Some(Vec::new()), ..Vm::new(TEST, Tracker::Ebpf) };
    let lab = Lab::new(dir.path(), Options { vms: vec![vm], ..options(&stop) }).unwrap();
    lab.start().unwrap();
    let had = held_within(&lab, &stop, TEST, POINT);
    let step = had.point.application.unwrap().failed.unwrap();
    assert_eq!((had.point.consistency, step.stage), (Consistency::CrashConsistent, Stage::Freeze));
    assert!(matches!(&step.outcome, Outcome::Failed(why) if why.contains("fuse")), "{step:?}");
    drop(lab);
    Tool::new("umount").arg(&point).run().unwrap();
}
