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
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use engine::{
    limits,
    point::{Consistency, FailedStep, Method, Outcome, Point, Stage},
    service::{admin::AdminError, shutdown::Shutdown},
};
use homeward::lab::{Lab, LabError, LoopDevice, Mount, Options, Tracker, Vm, isolate, tool::Tool};
use homeward_tests::{
    checkers::FileSystem,
    ground::{configure, held_within, options},
    settings,
};
use rustix::process::{Pid, Signal, kill_process};

const TEST: &str = "frozen-home";
const POINT: Duration = Duration::from_secs(300);
/// What a run of the hook may take.
const HOOK: Duration = Duration::from_secs(4);
/// What a write may take besides the freeze, on a busy machine that also syncs.
const SLACK: Duration = Duration::from_secs(2);

/// Writes a byte again and again, as the VM's applications might, and notes how long each write took.
struct Writer {
    stop: Arc<AtomicBool>,
    /// When the write under way began, if one is, and the longest.
    state: Arc<Mutex<(Option<Instant>, Duration)>>,
    /// Where the kernel says what the thread waits for.
    waits_for: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        let (stop, state) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new((None, Duration::ZERO))));
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&state));
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
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
        let waits_for = format!("/proc/self/task/{}/wchan", told.recv().unwrap().as_raw_nonzero());
        Self { stop, state, waits_for: waits_for.into(), thread: Some(thread) }
    }

    /// Whether a write waits for a thaw, as the kernel says; a write that waits for the disk waits elsewhere.
    fn is_held(&self) -> bool {
        fs::read_to_string(&self.waits_for).unwrap() == "percpu_rwsem_wait"
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
    configure(lab.agent(TEST).unwrap(), |table| {
        table["application"]["hook"][0]
            .as_table_mut()
            .unwrap()
            .insert("timeout".into(), format!("{}s", HOOK.as_secs()).into());
    });
    lab.start().unwrap();
    let writer = Writer::start(&mount.point().join("written"));

    // As it should be, and hooks that fail, crash, are killed, and hang.
    use {Outcome::*, Stage::*};
    for (script, failed) in [
        ("exit 0", None),
        ("[ $1 = --post ] || exit 7", Some((Pre, Exited(7)))),
        ("[ $1 = --post ] || kill -SEGV $$", Some((Pre, Killed(11)))),
        ("[ $1 = --post ] || sleep 300", Some((Pre, TimedOut(HOOK.as_millis() as u64)))),
        ("[ $1 = --pre ] || exit 8", Some((Post, Exited(8)))),
        ("[ $1 = --pre ] || kill -KILL $$", Some((Post, Killed(9)))),
        ("[ $1 = --pre ] || sleep 300", Some((Post, TimedOut(HOOK.as_millis() as u64)))),
        ("exit 0", None),
    ] {
        fs::write(home.join("mode"), script).unwrap();
        label(&lab, &stop, &hook, failed);
    }
    println!("{TEST}: the longest write took {:?}", writer.longest());
    // What a busy machine cannot freeze in time is tried again.
    until("metrics tell how applications held", || {
        let metrics = lab.agent(TEST).unwrap().metrics().unwrap();
        let count = |series: &str| {
            let value = metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap_or("0");
            value.trim().parse::<u64>().unwrap()
        };
        let failed = count("homeward_errors_total{kind=\"hook\"}");
        failed >= 6 && count("homeward_application_holds_total") >= failed + 2
    });

    // The agent is killed, and stopped, while all is frozen; the hook's notes tell that nobody is left holding.
    let notes = || fs::read_to_string(home.join("notes")).unwrap();
    let count = |what: &str| notes().lines().filter(|line| *line == what).count();
    for signal in [Signal::KILL, Signal::STOP, Signal::KILL] {
        let agent = lab.agent(TEST).unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let asking = scope.spawn(|| points_until(&over, &lab));
            let send = |signal| {
                kill_process(Pid::from_raw(agent.pid().unwrap() as i32).unwrap(), signal).unwrap();
            };
            until("the agent is caught while all is frozen", || {
                until("all is frozen", || writer.is_held());
                send(Signal::STOP);
                if writer.is_held() {
                    return true;
                }
                send(Signal::CONT);
                false
            });
            send(signal);
            writer.await_going_on();
            over.store(true, Relaxed);
            until("applications are let go", || count("--post") == count("--pre"));
            if signal == Signal::KILL {
                assert!(!asking.join().unwrap(), "nobody is there to answer");
                agent.restart().unwrap();
            } else {
                send(Signal::CONT);
                asking.join().unwrap();
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

/// Asks for points, one after the other, and checks their labels; whether the agent answers until it is `over`.
fn points_until(over: &AtomicBool, lab: &Lab) -> bool {
    while !over.load(Relaxed) {
        match lab.application_point_now(TEST) {
            Ok(point) => check_label(&point),
            Err(LabError::Admin { source: AdminError::Failed(_), .. }) => (),
            Err(_) => return false,
        }
    }
    true
}

/// A point that says it is application-consistent names no failure, and nobody was held, or frozen, for too long.
fn check_label(point: &Point) {
    let application = point.application.as_ref().expect("applications were to hold");
    let consistent = point.consistency == Consistency::ApplicationConsistent;
    assert_eq!(consistent, application.failed.is_none(), "{point:?}");
    if consistent {
        assert!(point.method == Method::Frozen && point.frozen_us > 0, "{point:?}");
        assert!(Duration::from_micros(application.hold_us) < limits::HOLD + SLACK, "{point:?}");
    }
}

/// Asks for a point until it is not the freeze that failed, which a busy machine may bring about; checks its label.
fn label(lab: &Lab, stop: &Shutdown, hook: &Path, expected: Option<(Stage, Outcome)>) {
    for _ in 0..20 {
        let had = held_within(lab, stop, TEST, POINT);
        check_label(&had.point);
        let failed = had.point.application.clone().and_then(|application| application.failed);
        if failed.as_ref().is_some_and(|step| step.stage == Stage::Freeze) {
            println!("{TEST}: {}", failed.unwrap());
            continue;
        }
        let step = hook.display().to_string();
        assert_eq!(failed, expected.map(|(stage, outcome)| FailedStep { step, stage, outcome }));
        return;
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

/// fuse2fs knows no freezing. Alone it makes no application-consistent point; beside others the point names it.
#[test]
fn what_cannot_be_frozen_is_named() {
    if !settings::is_root("unfreezable") {
        return;
    }
    isolate().unwrap();
    let stop = Shutdown::manual();
    let dir = tempfile::tempdir().unwrap();
    let disks = ["alone", "beside", "other"].map(|name| {
        let disk = LoopDevice::create(&dir.path().join(name).with_extension("img"), 64 << 20).unwrap();
        FileSystem::Ext4.make(disk.path()).unwrap();
        disk
    });
    let [alone, beside] = [0, 1].map(|number| {
        let point = dir.path().join(format!("m{number}"));
        fs::create_dir(&point).unwrap();
        Tool::new("fuse2fs").arg(disks[number].path()).arg(&point).run().unwrap();
        point
    });
    let mount = Mount::new(disks[2].path(), &dir.path().join("m2"), "").unwrap();
    let vm = |name, disks: &[LoopDevice]| Vm {
        disks: disks.iter().map(|disk| disk.path().into()).collect(),
        hooks: Some(Vec::new()),
        ..Vm::new(name, Tracker::Ebpf)
    };
    let vms = vec![vm("alone", &disks[..1]), vm("beside", &disks[1..])];
    let lab = Lab::new(dir.path(), Options { vms, ..options(&stop) }).unwrap();
    lab.start().unwrap();

    let point = held_within(&lab, &stop, "alone", POINT).point;
    check_label(&point);
    let step = point.application.unwrap().failed.unwrap();
    assert_eq!((point.consistency, step.stage), (Consistency::CrashConsistent, Stage::Freeze));
    assert!(matches!(&step.outcome, Outcome::Failed(why) if why.contains("fuse")), "{step:?}");

    let point = held_within(&lab, &stop, "beside", POINT).point;
    check_label(&point);
    assert_eq!(point.application.unwrap().not_frozen, [beside.display().to_string()]);
    drop((lab, mount));
    for point in [alone, beside] {
        Tool::new("umount").arg(&point).run().unwrap();
    }
}
