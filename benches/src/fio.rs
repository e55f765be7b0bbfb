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

/// As on a busy server: 20 MB/s in pieces of 4 to 64 KiB.
pub const CHURN: [&str; 5] =
    ["--bsrange=4k-64k", "--rate=20m", "--direct=1", "--ioengine=libaio", "--iodepth=8"];

/// How a load fared.
#[derive(Clone, Copy, Debug)]
pub struct Fared {
    /// Bytes written per second.
    pub bytes_per_second: f64,
    /// From the start of a write to its end: the mean.
    pub latency_us: f64,
}

/// Writes to the first `bytes` bytes of `file` for `time`.
pub fn run_for(
    file: &Path,
    bytes: u64,
    time: Duration,
    options: &[&str],
    stop: &Shutdown,
) -> anyhow::Result<Fared> {
    let said = job(file, bytes, time, options).until(stop).run()?.stdout;
    let report: serde_json::Value = serde_json::from_str(&said)?;
    let write = &report["jobs"][0]["write"];
    let latency = write["clat_ns"]["mean"].as_f64().map(|ns| ns / 1000.0);
    let fared = write["bw_bytes"].as_f64().zip(latency);
    let (bytes_per_second, latency_us) = fared.context("fio's report lacks a figure")?;
    Ok(Fared { bytes_per_second, latency_us })
}

/// Fills the first `bytes` bytes of `file`, so that what is measured later only overwrites.
pub fn fill(file: &Path, bytes: u64, stop: &Shutdown) -> anyhow::Result<()> {
    write_sequentially(file, bytes, stop).map(drop)
}

/// Bytes per second at which a new file in `dir` is written from start to end and synced; the file goes.
pub fn sequential_writes(dir: &Path, bytes: u64, stop: &Shutdown) -> anyhow::Result<f64> {
    let file = tempfile::NamedTempFile::new_in(dir)?;
    let report: serde_json::Value = serde_json::from_str(&write_sequentially(file.path(), bytes, stop)?)?;
    report["jobs"][0]["write"]["bw_bytes"].as_f64().context("fio's report lacks a figure")
}

/// Bytes per second of each of two files that are read and two that are written at once, in `dir`, sequentially: no
/// restore that can be undone is quicker, since it reads and writes two bytes for each. The files go.
pub fn like_a_restore(dir: &Path, bytes: u64, stop: &Shutdown) -> anyhow::Result<f64> {
    let files = (0..4).map(|_| tempfile::NamedTempFile::new_in(dir)).collect::<Result<Vec<_>, _>>()?;
    files.iter().try_for_each(|file| fill(file.path(), bytes, stop))?;
    let jobs = files.iter().zip(["read", "read", "write", "write"]).flat_map(|(file, way)| {
        [format!("--name={way}"), format!("--filename={}", file.path().display()), format!("--rw={way}")]
    });
    let done = Tool::new("fio")
        .args([
            "--thread",
            "--output-format=json",
            "--bs=1m",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=8",
        ])
        .arg(format!("--size={bytes}"))
        .args(jobs)
        .until(stop)
        .run()?;
    let report: serde_json::Value = serde_json::from_str(&done.stdout)?;
    let milliseconds = |job: &serde_json::Value| job["job_runtime"].as_u64();
    let jobs = report["jobs"].as_array().context("fio's report lacks its jobs")?;
    let slowest = jobs.iter().filter_map(milliseconds).max().context("fio's report lacks a figure")?;
    Ok(bytes as f64 * 1000.0 / slowest as f64)
}

fn write_sequentially(file: &Path, bytes: u64, stop: &Shutdown) -> anyhow::Result<String> {
    let sequential =
        ["--rw=write", "--bs=1m", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--end_fsync=1"];
    let done = Tool::new("fio")
        .args(["--name=fill".to_owned(), format!("--filename={}", file.display()), format!("--size={bytes}")])
        .args(["--thread", "--output-format=json"])
        .args(sequential)
        .until(stop)
        .run()?;
    Ok(done.stdout)
}
