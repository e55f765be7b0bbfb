//! The hooks process itself: runs the hooks of one point after the other, one at a time.
//!
//! A hook that was reached gets its post run, whatever happens: if its pre run or another's failed, if time is up, and
//! if the agent is gone. A pre run may leave a process behind that holds its application; it is killed if the post
//! run fails, so that a hook which cannot let go does not hold for ever.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    process::Command,
    time::{Duration, Instant},
};

use engine::point::{Application, FailedStep, Outcome, Stage};
use rustix::net::RecvFlags;

use super::{
    super::fs_ioctl,
    message::{Ask, Hook, Session, Tell, receive, send},
    program::{Run, Waited, readable},
};

/// Runs hooks as told on the socket that is the standard input. Returns when the agent is gone.
///
/// # Errors
/// If the agent speaks otherwise.
pub fn run() -> io::Result<()> {
    fs_ioctl::block_termination();
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    loop {
        let asked = match receive(socket, RecvFlags::empty()) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            asked => asked?,
        };
        let report = match asked {
            Some(Ask::Hold(session)) => Running::new(&session, socket).hold(),
            Some(Ask::Post(session)) => Running::new(&session, socket).post_all(),
            // It came too late: they were let go on already.
            Some(Ask::Release) | None => continue,
        };
        if send(socket, &Tell::Over(report)).is_err() {
            return Ok(());
        }
    }
}

/// The hooks of one point.
struct Running<'a> {
    session: &'a Session,
    socket: BorrowedFd<'a>,
    /// Pre runs, each with its hook; a run that could not be started is `None`.
    reached: Vec<(&'a Hook, Option<Run>)>,
    held_since: Option<Instant>,
    failed: Option<FailedStep>,
}

impl<'a> Running<'a> {
    fn new(session: &'a Session, socket: BorrowedFd<'a>) -> Self {
        Self { session, socket, reached: Vec::new(), held_since: None, failed: None }
    }

    fn hold(mut self) -> Application {
        if self.pre() {
            self.held_since.get_or_insert_with(Instant::now);
            let hold = Duration::from_millis(self.session.hold_ms);
            // If the agent is gone, the socket says so at once.
            let told = send(self.socket, &Tell::Held).is_ok() && readable(self.socket, hold);
            if !told {
                self.fail("hold", Stage::Freeze, Outcome::TimedOut(self.session.hold_ms));
            }
        }
        self.post()
    }

    /// Post runs of all hooks, after a process that ended before it could.
    fn post_all(mut self) -> Application {
        self.reached = self.session.hooks.iter().map(|hook| (hook, None)).collect();
        self.post()
    }

    /// Returns whether all applications hold.
    fn pre(&mut self) -> bool {
        for hook in &self.session.hooks {
            let (run, outcome) = self.run(hook, Stage::Pre);
            self.reached.push((hook, run));
            self.held_since.get_or_insert_with(Instant::now);
            if let Err(outcome) = outcome {
                self.fail(&hook.path.display().to_string(), Stage::Pre, outcome);
                return false;
            }
        }
        true
    }

    fn post(mut self) -> Application {
        while let Some((hook, pre)) = self.reached.pop() {
            let (post, outcome) = self.run(hook, Stage::Post);
            if let Err(outcome) = outcome {
                pre.iter().chain(&post).for_each(Run::kill);
                self.fail(&hook.path.display().to_string(), Stage::Post, outcome);
            }
        }
        let held = self.held_since.map_or(Duration::ZERO, |since| since.elapsed());
        Application { hold_us: held.as_micros() as u64, failed: self.failed, not_frozen: Vec::new() }
    }

    /// Runs one hook. A pre run is broken off when the agent says anything, or nothing any more.
    fn run(&self, hook: &Hook, stage: Stage) -> (Option<Run>, Result<(), Outcome>) {
        let mut command = Command::new(&hook.path);
        let (option, word) = if stage == Stage::Pre { ("--pre", "pre") } else { ("--post", "post") };
        command
            .arg(option)
            .env("HOMEWARD_POINT_ID", self.session.point.to_string())
            .env("HOMEWARD_POINT_KIND", engine::point::Consistency::ApplicationConsistent.to_string())
            .env("HOMEWARD_STAGE", word)
            .env("HOMEWARD_VM", &self.session.vm);
        let within = Duration::from_millis(hook.within_ms);
        let deadline = Instant::now() + within;
        let run = match Run::start(command) {
            Ok(run) => run,
            Err(error) => return (None, Err(Outcome::Failed(format!("it cannot be started: {error}")))),
        };
        let outcome = match run.wait(deadline, (stage == Stage::Pre).then_some(self.socket)) {
            Waited::Ended(outcome) => outcome,
            Waited::TimedOut => {
                run.kill();
                Err(Outcome::TimedOut(hook.within_ms))
            }
            Waited::Interrupted => {
                run.kill();
                Err(Outcome::Failed("it was broken off, since the point was given up".into()))
            }
        };
        (Some(run), outcome)
    }

    /// The first failure is what is told.
    fn fail(&mut self, step: &str, stage: Stage, outcome: Outcome) {
        self.failed.get_or_insert_with(|| FailedStep { step: step.to_owned(), stage, outcome });
    }
}
