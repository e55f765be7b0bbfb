//! fio: a load in the background, or one that fills a disk.

use std::{
    path::Path,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use engine::service::shutdown::Shutdown;
use homeward::lab::{LabError, tool::Tool};

/// What every job has in common: 4 KiB writes at random places, as one process, the same places in every run.
const COMMON: [&str; 7] = [
    "--thread",
    "--rw=randwrite",
    "--bs=4k",
    "--norandommap",
    "--randseed=1",
    "--time_based",
    "--output-format=json",
];

fn job(file: &Path, bytes: u64, runtime: Duration, options: &[&str]) -> Tool {
    Tool::new("fio")
        .args(["--name=load".to_owned(), format!("--filename={}", file.display())])
        .args([format!("--size={bytes}"), format!("--runtime={}", runtime.as_secs())])
        .args(COMMON)
        .args(options)
}

/// A load that goes on until it is dropped.
pub struct Load {
    stop: Shutdown,
    thread: Option<JoinHandle<Result<(), LabError>>>,
}

/// No measurement takes longer.
const LONGEST: Duration = Duration::from_secs(3600);

impl Load {
    /// Writes to the first `bytes` bytes of `file`.
    pub fn start(file: &Path, bytes: u64, options: &[&str]) -> std::io::Result<Self> {
        let stop = Shutdown::manual();
        let job = job(file, bytes, LONGEST, options).until(&stop);
        let thread = thread::Builder::new().name("fio".into()).spawn(move || job.run().map(drop))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it had ended before, by itself: what it said.
    pub fn stop(mut self) -> anyhow::Result<()> {
        match self.end() {
            Some(Err(LabError::Interrupted)) | None => Ok(()),
            Some(Err(error)) => Err(error).context("the load failed"),
            Some(Ok(())) => anyhow::bail!("the load ended before the measurement did"),
        }
    }

    fn end(&mut self) -> Option<Result<(), LabError>> {
        self.stop.request();
        self.thread.take()?.join().ok()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Fills the first `bytes` bytes of `file`, so that what is measured later only overwrites.
pub fn fill(file: &Path, bytes: u64, stop: &Shutdown) -> anyhow::Result<()> {
    let sequential =
        ["--rw=write", "--bs=1m", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--end_fsync=1"];
    Tool::new("fio")
        .args(["--name=fill".to_owned(), format!("--filename={}", file.display()), format!("--size={bytes}")])
        .args(["--thread", "--output-format=json"])
        .args(sequential)
        .until(stop)
        .run()?;
    Ok(())
}
