//! `homeward demo`: arguments, signals and output.

use std::{path::PathBuf, sync::mpsc, thread};

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use engine::service::{quantity::Size, shutdown::Shutdown};
use homeward::demo::{self, MOST_POINTS, Options, SMALLEST, Teller};
use homeward::lab::LabError;

const AFTER: &str = "\
Needs e2fsprogs, and about six times the size in free space below TMPDIR, else /var/tmp. As root the disk is a loop
device with a mounted ext4, tracked by eBPF; otherwise it is a file, and points are made while the writers pause.
With qemu-img installed the VMDKs are compared by that, too.

Examples:
  homeward demo
  homeward demo --size 4GiB --points 10
  homeward demo --keep ./demo              leaves keys, configurations, logs, VMDKs there
  homeward demo --size 96MiB --json        one object; \"ok\" says whether everything held

Exit codes: 0 every check held, 1 not so or failed, 2 wrong arguments, 5 something needed is missing, 130 interrupted.";

#[derive(Debug, ClapArgs)]
#[command(after_help = AFTER)]
pub(crate) struct Args {
    /// Size of the scratch disk.
    #[arg(long, default_value = "1GiB", value_parser = size)]
    size: Size,
    /// Recovery points to make, besides the one after the full copy.
    #[arg(long, default_value_t = 4, value_parser = points)]
    points: usize,
    /// Work in this folder, which must be empty or missing, and leave everything there.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

fn size(text: &str) -> Result<Size, String> {
    match text.parse().map_err(|error| format!("{error}"))? {
        size if size < SMALLEST => Err(format!("the smallest disk is {SMALLEST}")),
        size => Ok(size),
    }
}

fn points(text: &str) -> Result<usize, String> {
    let points = text.parse().ok().filter(|points| (1..=MOST_POINTS).contains(points));
    points.ok_or_else(|| format!("1 to {MOST_POINTS} points can be made"))
}

impl Args {
    /// Returns whether every check held.
    pub(crate) fn run(self, json: bool) -> Result<bool> {
        let stop = on_signals().context("cannot listen to signals")?;
        let tell = Teller::new(json);
        if !json {
            println!(
                "Homeward demo: a disk is replicated while it is written, and every point of it is restored.\n"
            );
        }
        let options = Options { size: self.size, points: self.points, keep: self.keep.clone() };
        let report = demo::run(&options, &stop, &tell).map_err(LabError::into_command_error)?;
        if json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{report}");
            if let Some(dir) = self.keep {
                let config = dir.join("lab/master-target.toml");
                println!(
                    "Left in {}; for example: homeward-master-target --config {} points demo",
                    dir.display(),
                    config.display()
                );
            } else if !report.ok {
                println!("To look into it, run it again with --keep DIR: logs and VMDKs stay there.");
            }
        }
        Ok(report.ok)
    }
}

/// Signals become a wish to stop, in a thread of their own; the main thread heeds it between pieces of work. SIGHUP
/// counts, too: the terminal is gone.
fn on_signals() -> std::io::Result<Shutdown> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (send, receive) = mpsc::channel();
    let body = move || {
        runtime.block_on(async {
            let stop = Shutdown::on_signals();
            let hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
            let signals = stop.and_then(|stop| Ok((stop, hangup?)));
            // The receiver waits below.
            let _ = send.send(signals.as_ref().map(|(stop, _)| stop.clone()).map_err(|error| error.kind()));
            let Ok((stop, mut hangup)) = signals else { return };
            hangup.recv().await;
            stop.request();
            std::future::pending::<()>().await;
        });
    };
    thread::Builder::new().name("signals".into()).spawn(body)?;
    let ended = || std::io::Error::other("the signal thread ended");
    Ok(receive.recv().map_err(|_| ended())??)
}
