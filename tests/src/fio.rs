//! fio as a load that can be verified later: every block says what its checksum is, and is written past the page
//! cache, so that it is old or new and nothing between.

use std::{
    io,
    path::Path,
    process::{Child, Command, Stdio},
};

use homeward::lab::{LabError, tool::Tool};

/// Files that are written, each by a job of its own.
const JOBS: usize = 2;

const ARGUMENTS: [&str; 6] =
    ["--size=12m", "--bs=4k", "--direct=1", "--verify=crc32c", "--verify_state_save=0", "--minimal"];

/// A fio that writes at random, until it is dropped.
pub struct Fio(Child);

impl Fio {
    /// Lays out the files in the folder `dir`, and begins to overwrite them.
    ///
    /// # Errors
    /// What fio says.
    pub fn start(dir: &Path) -> Result<Self, LabError> {
        let jobs = (0..JOBS).map(|job| file_of(dir, job));
        jobs.clone().try_for_each(|file| {
            let layout =
                Tool::new("fio").args(["--name=layout", "--rw=write", "--do_verify=0", "--end_fsync=1"]);
            layout.args(ARGUMENTS).arg(file).run().map(drop)
        })?;
        let mut command = Command::new("fio");
        command.args(ARGUMENTS).args(["--rw=randwrite", "--do_verify=0", "--time_based", "--runtime=3600"]);
        command.arg("--rate_iops=500").args(jobs.flat_map(|file| ["--name=load".to_owned(), file]));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().map(Self).map_err(LabError::io("run", "fio"))
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// Reads every block in the folder `dir`, in a copy of the disk, and checks it.
    ///
    /// # Errors
    /// What fio finds.
    pub fn verify(dir: &Path) -> Result<(), LabError> {
        let verify = |job| {
            let read = Tool::new("fio").args(["--name=verify", "--rw=read", "--verify_fatal=1"]);
            read.args(ARGUMENTS).arg(file_of(dir, job)).run().map(drop)
        };
        (0..JOBS).try_for_each(verify)
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// A fio that writes 20 MB/s through the page cache, at random, until it is dropped.
pub struct Bulk(Child);

impl Bulk {
    /// Makes `file` and begins to overwrite it.
    ///
    /// # Errors
    /// If fio cannot be started.
    pub fn start(file: &Path) -> Result<Self, LabError> {
        let mut command = Command::new("fio");
        command.args(["--name=bulk", "--rw=randwrite", "--bsrange=4k-64k", "--size=64m", "--rate=20m"]);
        command
            .args(["--time_based", "--runtime=3600", "--minimal"])
            .arg(format!("--filename={}", file.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().map(Self).map_err(LabError::io("run", "fio"))
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn end(fio: &mut Child) {
    // Its threads may be children of the process: with the SIGINT it ends them all.
    let _ =
        rustix::process::kill_process(rustix::process::Pid::from_child(fio), rustix::process::Signal::INT);
    let _ = fio.wait();
}

fn file_of(dir: &Path, job: usize) -> String {
    format!("--filename={}", dir.join(format!("fio-{job}")).display())
}
