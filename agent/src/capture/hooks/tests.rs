//! Hooks that do what hooks do: succeed, fail, hang, crash, leave something behind; and processes that are killed.
//! Each hook is a shell script that notes its runs in a file.

use std::{fs, path::Path, time::Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::tracker::testing::{run, wait_for};

/// Not a test: the hooks process of those below.
#[test]
fn hooks_process() {
    if std::env::var("HOMEWARD_TEST").as_deref() == Ok("hooks") {
        runner::run().unwrap();
    }
}

fn process() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "capture::hooks::tests::hooks_process", "--nocapture"])
        .env("HOMEWARD_TEST", "hooks");
    command
}

/// A folder with hooks and what they note.
struct Bench {
    dir: tempfile::TempDir,
    hooks: Vec<Hook>,
}

impl Bench {
    /// `scripts` are shell, run with `$1` as the option and `$log` as the file of notes.
    fn new(scripts: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hooks = scripts.iter().enumerate().map(|(number, script)| {
            let path = dir.path().join(format!("hook{number}"));
            let log = dir.path().join("log");
            let text = format!("#!/bin/sh\nlog={}\nme=hook{number}\n{script}\n", log.display());
            // By another process: were it open for writing here, a test beside this one might inherit it, and what
            // is open for writing cannot be run.
            run(
                "sh",
                &[
                    "-c",
                    "printf '%s' \"$2\" > \"$1\" && chmod +x \"$1\"",
                    "sh",
                    path.to_str().unwrap(),
                    &text,
                ],
            );
            Hook { path, within_ms: 20_000 }
        });
        let hooks = hooks.collect();
        Self { dir, hooks }
    }

    fn start(&self) -> Hooks {
        Hooks::start(Box::new(process), "vm".into(), self.hooks.clone()).unwrap()
    }

    fn notes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn await_note(&self, note: &str) {
        wait_for(note, || self.notes().iter().any(|line| line == note));
    }

    fn path(&self, number: usize) -> String {
        self.hooks[number].path.display().to_string()
    }
}

/// Until the hooks no longer work.
fn settle(hooks: &mut Hooks) -> Quiesce {
    let start = Instant::now();
    loop {
        match hooks.poll() {
            Quiesce::Working => std::thread::sleep(Duration::from_millis(1)),
            other => return other,
        }
        assert!(start.elapsed() < Duration::from_secs(20), "hooks do not end");
    }
}

fn over(hooks: &mut Hooks) -> Application {
    let start = Instant::now();
    loop {
        if let Quiesce::Over(report) = hooks.poll() {
            return report;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "hooks do not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn failed(report: &Application) -> (&str, Stage, &Outcome) {
    let step = report.failed.as_ref().expect("a step failed");
    (&step.step, step.stage, &step.outcome)
}

const NOTE: &str = "echo $me $1 >> $log";

#[test]
fn hooks_run_in_order_and_in_reverse_and_know_their_point() {
    let known = "echo $me $1 $HOMEWARD_STAGE $HOMEWARD_POINT_ID $HOMEWARD_POINT_KIND $HOMEWARD_VM >> $log";
    let bench = Bench::new(&[NOTE, known]);
    let mut hooks = bench.start();
    for _ in 0..3 {
        let _ = fs::remove_file(bench.dir.path().join("log"));
        let id = PointId::random();
        hooks.hold(id);
        assert_eq!(settle(&mut hooks), Quiesce::Held);
        assert_eq!(bench.notes().len(), 2);
        assert_eq!(hooks.poll(), Quiesce::Held);
        hooks.release();
        let report = over(&mut hooks);
        assert_eq!(report.failed, None);
        assert!(report.hold_us > 0);
        let told = |stage| format!("hook1 --{stage} {stage} {id} application-consistent vm");
        assert_eq!(
            bench.notes(),
            ["hook0 --pre".to_owned(), told("pre"), told("post"), "hook0 --post".into()]
        );
    }
}

/// As ASR's users have it: told only by its first argument what to do.
#[test]
fn a_customscript_of_asr_works_unchanged() {
    let customscript = r#"
        if [ $# -ne 1 ]; then echo "Usage: $0 [--pre | --post]"; exit 1; fi
        if [ "$1" = "--pre" ]; then echo freeze >> $log; exit 0
        elif [ "$1" = "--post" ]; then echo thaw >> $log; exit 0
        fi
        exit 1"#;
    let bench = Bench::new(&[customscript]);
    let mut hooks = bench.start();
    hooks.hold(PointId::random());
    assert_eq!(settle(&mut hooks), Quiesce::Held);
    hooks.release();
    assert_eq!(over(&mut hooks).failed, None);
    assert_eq!(bench.notes(), ["freeze", "thaw"]);
}

#[test]
fn a_hook_that_fails_is_named_and_all_that_were_reached_are_let_go() {
    for (script, outcome) in [
        ("[ $1 = --post ] || exit 3", Outcome::Exited(3)),
        ("[ $1 = --post ] || kill -SEGV $$", Outcome::Killed(11)),
        ("[ $1 = --post ] || kill -KILL $$", Outcome::Killed(9)),
    ] {
        let bench = Bench::new(&[NOTE, &format!("{NOTE}; {script}"), NOTE]);
        let mut hooks = bench.start();
        hooks.hold(PointId::random());
        let Quiesce::Over(report) = settle(&mut hooks) else { panic!("they do not hold") };
        assert_eq!(failed(&report), (&*bench.path(1), Stage::Pre, &outcome));
        assert_eq!(bench.notes(), ["hook0 --pre", "hook1 --pre", "hook1 --post", "hook0 --post"]);
    }
}

#[test]
fn a_hook_that_cannot_be_started_is_named() {
    let mut bench = Bench::new(&[NOTE, NOTE]);
    bench.hooks[1].path = bench.dir.path().join("nothing");
    let mut hooks = bench.start();
    hooks.hold(PointId::random());
    let Quiesce::Over(report) = settle(&mut hooks) else { panic!("they do not hold") };
    let (step, stage, outcome) = failed(&report);
    assert!(step.ends_with("nothing") && stage == Stage::Pre, "{report:?}");
    assert!(matches!(outcome, Outcome::Failed(reason) if reason.contains("No such file")), "{report:?}");
    assert_eq!(bench.notes(), ["hook0 --pre", "hook0 --post"]);
}

#[test]
fn one_that_hangs_is_killed_with_all_that_it_started() {
    let script = "echo $me $1 >> $log; [ $1 = --post ] && exit; sleep 300 & echo $! >> $log; wait";
    let mut bench = Bench::new(&[NOTE, script]);
    bench.hooks[1].within_ms = 400;
    let mut hooks = bench.start();
    hooks.hold(PointId::random());
    let Quiesce::Over(report) = settle(&mut hooks) else { panic!("they do not hold") };
    assert_eq!(failed(&report), (&*bench.path(1), Stage::Pre, &Outcome::TimedOut(400)));
    let [_, _, sleep, post, last] = &bench.notes()[..] else { panic!("{:?}", bench.notes()) };
    assert_eq!([post, last], ["hook1 --post", "hook0 --post"]);
    wait_for("what it started is killed", || is_gone(sleep));
}

/// Whether a process has ended, be it reaped or not.
fn is_gone(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|state| state.starts_with('Z')))
}

/// What a hook leaves behind on purpose, to hold an application, lives on; but not if the hook cannot let go.
#[test]
fn what_holds_an_application_lives_until_the_post_hook_and_no_longer_if_that_fails() {
    for (post, lives) in [("exit 0", true), ("exit 4", false), ("sleep 300", false)] {
        let script = format!("[ $1 = --post ] && {{ {post}; }}; sleep 300 & echo $! >> $log");
        let mut bench = Bench::new(&[&script]);
        bench.hooks[0].within_ms = 700;
        let mut hooks = bench.start();
        hooks.hold(PointId::random());
        assert_eq!(settle(&mut hooks), Quiesce::Held);
        let holder = bench.notes()[0].clone();
        assert!(!is_gone(&holder));
        hooks.release();
        let report = over(&mut hooks);
        assert_eq!(report.failed.is_none(), lives, "{report:?}");
        if lives {
            assert!(!is_gone(&holder));
            run("kill", &["-KILL", &holder]);
        } else {
            assert_eq!(failed(&report).1, Stage::Post);
        }
        wait_for("it is gone", || is_gone(&holder));
    }
}

#[test]
fn applications_are_not_held_longer_than_the_bound() {
    let bench = Bench::new(&[NOTE]);
    let mut hooks = bench.start();
    hooks.hold = Duration::from_millis(300);
    hooks.hold(PointId::random());
    assert_eq!(settle(&mut hooks), Quiesce::Held);
    let report = over(&mut hooks);
    assert_eq!(failed(&report), ("hold", Stage::Freeze, &Outcome::TimedOut(300)));
    assert_eq!(bench.notes(), ["hook0 --pre", "hook0 --post"]);
    hooks.release(); // Too late, and no matter.
    hooks.hold(PointId::random());
    assert_eq!(settle(&mut hooks), Quiesce::Held);
}

#[test]
fn pre_hooks_are_broken_off_when_the_point_is_given_up() {
    let bench = Bench::new(&[NOTE, "echo $me $1 >> $log; [ $1 = --post ] || sleep 300"]);
    let mut hooks = bench.start();
    hooks.hold(PointId::random());
    bench.await_note("hook1 --pre");
    hooks.release();
    let report = over(&mut hooks);
    assert!(matches!(failed(&report), (_, Stage::Pre, Outcome::Failed(_))), "{report:?}");
    assert_eq!(bench.notes(), ["hook0 --pre", "hook1 --pre", "hook1 --post", "hook0 --post"]);
}

/// The agent's end of the socket closes, whatever kills it.
#[test]
fn applications_are_let_go_when_the_agent_is_gone() {
    for holding in [true, false] {
        let bench = Bench::new(&[
            NOTE,
            if holding { NOTE } else { "echo $me $1 >> $log; [ $1 = --post ] || sleep 300" },
        ]);
        let mut hooks = bench.start();
        hooks.hold(PointId::random());
        bench.await_note("hook1 --pre");
        if holding {
            assert_eq!(settle(&mut hooks), Quiesce::Held);
        }
        drop(hooks);
        bench.await_note("hook0 --post");
        assert_eq!(bench.notes(), ["hook0 --pre", "hook1 --pre", "hook1 --post", "hook0 --post"]);
    }
}

#[test]
fn applications_are_let_go_when_the_hooks_process_is_killed() {
    let bench = Bench::new(&[NOTE]);
    let mut hooks = bench.start();
    let kill = |hooks: &Hooks| {
        let process = hooks.process.as_ref().unwrap();
        kill_process(Pid::from_child(&process.child), Signal::KILL).unwrap();
        wait_for("it is gone", || receive::<Tell>(&process.socket, RecvFlags::DONTWAIT).is_err());
    };
    hooks.hold(PointId::random());
    assert_eq!(settle(&mut hooks), Quiesce::Held);
    kill(&hooks);
    let report = over(&mut hooks);
    assert!(matches!(failed(&report), (PROCESS, _, Outcome::Failed(_))), "{report:?}");
    assert_eq!(bench.notes(), ["hook0 --pre", "hook0 --post"]);
    // Killed while there is nothing to do, it is started anew.
    kill(&hooks);
    hooks.hold(PointId::random());
    assert_eq!(settle(&mut hooks), Quiesce::Held);
    hooks.release();
    assert_eq!(over(&mut hooks).failed, None);
}

#[test]
fn without_hooks_there_is_nothing_to_wait_for() {
    let bench = Bench::new(&[]);
    let mut hooks = bench.start();
    hooks.hold(PointId::random());
    assert_eq!(settle(&mut hooks), Quiesce::Held);
    hooks.release();
    assert_eq!(over(&mut hooks).failed, None);
}
