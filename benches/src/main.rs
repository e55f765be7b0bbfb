//! The `homeward-bench` command: measures what docs/performance.md states, on this machine, with real disks.
//!
//! Every measurement lives in a module of its own that knows nothing of the others; here are only arguments. Nothing
//! stays behind: mounts, network namespaces, BPF pins, loop devices and what was started end with the process, however it
//! ends. Only `compare` installs anything, the tools that it compares with, and keeps anything, its disks.

mod barrier;
mod compare;
mod disk;
mod drill;
mod figures;
mod fio;
mod memory;
mod overhead;
mod restore;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use agent::{capture::watchdog, setup::WATCHDOG_COMMAND};
use anyhow::Context;
use clap::{Parser, Subcommand};
use engine::service::{
    exit::{self, Code, WithCode},
    logging,
    quantity::{Rate, Size},
    shutdown::Shutdown,
};
use homeward::lab;

const EXAMPLES: &str = "\
Examples (as root, in release mode, on an otherwise idle machine):
  homeward-bench barrier                      points under four loads, 100 each: about four minutes
  homeward-bench barrier --load fsync --json
  homeward-bench overhead --rounds 200
  homeward-bench memory --disk 8GiB
  homeward-bench drill --disk 1GiB            against qemu-nbd
  homeward-bench restore --images 10GiB       needs three times that on --dir, and 4 GiB
  homeward-bench restore --images 1GiB --rounds 0 --kills 50
  homeward-bench compare full-1g              against nbdcopy, qemu-img and zstd pipes: about 20 minutes
  homeward-bench compare full-200m --size 1GiB --rounds 1 --json
  homeward-bench compare churn --minutes 2
  homeward-bench tune --rate 200Mbit/s        which settings to choose for such a link
  cargo bench -p homeward-bench               the hot stages, without root

Exit codes: 0 measured, 1 failed, 2 wrong arguments, 5 refused (not root, or a tool is missing), 6 a copy is not equal
to its source, 130 interrupted.";

/// Measures Homeward on this machine.
#[derive(Debug, Parser)]
#[command(name = "homeward-bench", version, after_help = EXAMPLES)]
struct Cli {
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,

    /// Where scratch disks are made: /tmp, or for `compare` and `tune`, which keep them, /var/tmp/homeward-bench.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,

    /// Size of a scratch disk; but of `compare` and `tune` see --size.
    #[arg(long, global = true, default_value = "2GiB")]
    disk: Size,

    /// What to log to stderr: `info`, `agent=debug`. Else RUST_LOG, else `error`.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How points are made under load: how many need no freeze, tries, windows, freezes.
    Barrier {
        /// Points under each load.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        points: u32,
        /// Only these loads.
        #[arg(long = "load", value_name = "NAME", value_parser = barrier::NAMES)]
        loads: Vec<String>,
        /// Milliseconds from one point to the request for the next.
        #[arg(long, default_value_t = 300)]
        every_ms: u64,
    },
    /// What tracking costs a busy disk: a running fio with and without it, in turns.
    Overhead {
        /// Pairs of slices of time, one with it and one without.
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Milliseconds of one slice.
        #[arg(long, default_value_t = 120)]
        slice_ms: u64,
    },
    /// How much memory each service takes during a full copy and under churn.
    Memory {
        /// Seconds of churn.
        #[arg(long, default_value_t = 120)]
        seconds: u64,
    },
    /// A drill against qemu-nbd serving the same raw image, in turns.
    Drill {
        /// Pairs of slices of each way of reading and writing.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Milliseconds of one slice.
        #[arg(long, default_value_t = 2000)]
        slice_ms: u64,
    },
    /// Restore of the oldest point against the disk's sequential write rate; and restores that are killed.
    Restore {
        /// Bytes of before-images.
        #[arg(long, default_value = "1GiB")]
        images: Size,
        /// Restores that are measured.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// How often restore or undo are killed, at random moments.
        #[arg(long, default_value_t = 0)]
        kills: u32,
    },
    /// Homeward beside other ways to copy a disk, over links made for it: seconds, bytes, CPU time, memory.
    Compare {
        /// What is compared.
        scenario: compare::Scenario,
        /// Size of the disk, three quarters of it system files.
        #[arg(long, default_value = "8GiB")]
        size: Size,
        /// Runs of each tool.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Length of `churn`.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        minutes: u32,
        /// Homeward alone.
        #[arg(long)]
        no_peers: bool,
    },
    /// Tries the agent's settings over a link like yours, and says which to choose.
    Tune {
        /// Size of the disk, three quarters of it system files.
        #[arg(long, default_value = "2GiB")]
        size: Size,
        /// The link's rate, as "1Gbit/s"; without it there is no limit.
        #[arg(long)]
        rate: Option<Rate>,
        /// Runs with each setting.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
    /// Started by `barrier`: thaws file systems should it fail to.
    #[command(hide = true, name = WATCHDOG_COMMAND)]
    FreezeWatchdog,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::run(cli.json, || {
        if let Command::FreezeWatchdog = cli.command {
            // Nothing else may happen in that process.
            return Ok(watchdog::run()?);
        }
        logging::init(cli.log.as_deref().or(Some("error")), false)?;
        check_machine()?;
        // Before any thread is started, or that thread would keep the machine's mounts.
        lab::isolate().context("cannot make mounts of our own")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let stop = runtime.block_on(async { Shutdown::on_signals() })?;
        // An interrupt and a missing tool have exit codes of their own.
        run(&cli, &stop).map_err(|error| match error.downcast::<lab::LabError>() {
            Ok(error) => error.into_command_error(),
            Err(error) => error,
        })
    })
}

/// Refuses before anything is made.
fn check_machine() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(anyhow::anyhow!("loop devices, mounts and eBPF need root: run it with sudo"))
            .with_code(Code::Refused);
    }
    if lab::tool::find("fio").is_none() {
        return Err(anyhow::anyhow!("the loads are made by fio: apt-get install fio"))
            .with_code(Code::Refused);
    }
    if cfg!(debug_assertions) {
        eprintln!("note: this is a debug build; its figures mean nothing (cargo run --release)");
    }
    Ok(())
}

fn run(cli: &Cli, stop: &Shutdown) -> anyhow::Result<()> {
    let dir = |default: &str| cli.dir.clone().unwrap_or_else(|| default.into());
    let scratch = disk::Scratch { dir: dir("/tmp"), bytes: cli.disk.0 };
    match &cli.command {
        Command::Barrier { points, loads, every_ms } => {
            let plan = barrier::Plan { points: *points, every: Duration::from_millis(*every_ms), loads };
            print(cli.json, &barrier::run(&scratch, &plan, stop)?)
        }
        Command::Overhead { rounds, slice_ms } => {
            print(cli.json, &overhead::run(&scratch, *rounds, Duration::from_millis(*slice_ms), stop)?)
        }
        Command::Memory { seconds } => {
            print(cli.json, &memory::run(&scratch, Duration::from_secs(*seconds), stop)?)
        }
        Command::Drill { rounds, slice_ms } => {
            print(cli.json, &drill::run(&scratch, *rounds, Duration::from_millis(*slice_ms), stop)?)
        }
        Command::Restore { images, rounds, kills } => {
            print(cli.json, &restore::run(&scratch, images.0, *rounds, *kills, stop)?)
        }
        Command::Compare { scenario, size, rounds, minutes, no_peers } => {
            let plan = compare::Plan {
                scenario: *scenario,
                bytes: size.0,
                rounds: *rounds,
                minutes: *minutes,
                peers: !no_peers,
            };
            let report = compare::run(&dir(compare::DIR), &plan, stop)?;
            print(cli.json, &report)?;
            report.check()
        }
        Command::Tune { size, rate, rounds } => {
            print(cli.json, &compare::tune::run(&dir(compare::DIR), size.0, *rate, *rounds, stop)?)
        }
        Command::FreezeWatchdog => Ok(()),
    }
}

fn print<R: serde::Serialize + std::fmt::Display>(json: bool, report: &R) -> anyhow::Result<()> {
    if json {
        let mut object = serde_json::to_value(report)?;
        if object.get("ok").is_none() {
            object["ok"] = true.into();
        }
        println!("{object}");
    } else {
        print!("{report}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }
}
