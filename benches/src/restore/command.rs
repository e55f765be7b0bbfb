//! The real `homeward-master-target restore`, as a process that may be killed.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use engine::service::shutdown::Shutdown;
use homeward::lab::{self, Look};
use serde_json::Value;

use super::images::{Images, VM};

/// No restore takes longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// The program.
pub struct Program(PathBuf);

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the oldest point.
    Back,
    /// To what it was before.
    Forward,
}

impl Program {
    /// Built if it has to be.
    pub fn find() -> anyhow::Result<Self> {
        Ok(Self(lab::build_services(lab::is_release())?.join("homeward-master-target")))
    }

    /// Goes that way to the end; seconds, and what it says of the VM.
    pub fn run(&self, images: &Images, way: Way, stop: &Shutdown) -> anyhow::Result<(f64, Value)> {
        let mut running = Running::start(&self.0, images, way)?;
        let began = Instant::now();
        lab::wait_until(stop, "the restore", LONGEST, || {
            Ok(match running.child.try_wait() {
                Ok(None) => Look::NotYet("it runs".into()),
                ended => Look::Done(ended),
            })
        })?
        .context("cannot wait for the restore")?;
        let seconds = began.elapsed().as_secs_f64();
        Ok((seconds, running.answer()?))
    }

    /// Goes that way, and is killed after `after`; false if it had come to its end before.
    pub fn kill(&self, images: &Images, way: Way, after: Duration, stop: &Shutdown) -> anyhow::Result<bool> {
        let mut running = Running::start(&self.0, images, way)?;
        lab::let_pass(stop, after)?;
        if running.child.try_wait()?.is_some() {
            running.answer()?;
            return Ok(false);
        }
        // SIGKILL.
        running.child.kill()?;
        running.child.wait()?;
        Ok(true)
    }
}

/// Ends when it is dropped.
struct Running {
    child: Child,
    way: Way,
}

impl Running {
    fn start(program: &Path, images: &Images, way: Way) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.arg("--config").arg(&images.config).args(["--json", "restore", VM]);
        match way {
            Way::Back => command.args(["--point", &images.oldest.to_string()]),
            Way::Forward => command.arg("--undo"),
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, way })
    }

    /// What it said; it has ended.
    fn answer(&mut self) -> anyhow::Result<Value> {
        use std::io::Read;
        let (mut said, mut complained) = (String::new(), String::new());
        self.child.stdout.take().map(|mut out| out.read_to_string(&mut said)).transpose()?;
        self.child.stderr.take().map(|mut err| err.read_to_string(&mut complained)).transpose()?;
        let status = self.child.wait()?;
        // The one before was killed when all was done but said.
        let was_done = self.way == Way::Forward && said.contains("nothing to undo");
        anyhow::ensure!(status.success() || was_done, "the restore failed ({status}): {complained}{said}");
        serde_json::from_str(&said).context("what the restore said is no JSON")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
