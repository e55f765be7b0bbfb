//! `restore`: a VM, or all of a group, to a point; what that would do; back; or for good.

use std::time::{Duration, Instant};

use engine::service::{
    exit::{Code, WithCode},
    quantity::{Period, Size},
};
use master_target::{
    config::Config,
    restore::{Estimate, Member, Select, shared_point, vms_of},
    status::StreamStatus,
};
use serde_json::json;

use super::desk::{Change, Desk};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM.
    #[arg(required_unless_present = "group")]
    vm: Option<String>,
    /// All VMs of a group, to the newest moment that each has a point of.
    #[arg(long, value_name = "NAME", conflicts_with = "vm")]
    group: Option<String>,
    /// `latest`, `latest-application-consistent`, a point's id (of a group also a barrier's), a time: the newest point
    /// taken at or before it; or `before-failback`: the disks as they were at home before anything was written to them.
    #[arg(long, default_value = "latest")]
    point: String,
    /// Say what would be done and how long it would take, and do nothing.
    #[arg(long, conflicts_with_all = ["undo", "accept"])]
    dry_run: bool,
    /// Make the disks again what they were when replication stopped; it goes on.
    #[arg(long, conflicts_with = "point")]
    undo: bool,
    /// Keep the disks as they are restored, for good: what was newer is dropped, and replication does not go on.
    #[arg(long, conflicts_with_all = ["point", "undo"])]
    accept: bool,
}

/// What to do with which VM.
struct Job {
    vm: String,
    change: Change,
}

/// `restore`.
pub(crate) fn run(config: &Config, args: &Args, json: bool) -> anyhow::Result<()> {
    // Before anybody is asked.
    let _: Select = args.point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
    let desk = Desk::open(config, json)?;
    let jobs = match (&args.group, &args.vm) {
        (Some(group), _) => jobs_of_group(&desk, group, args)?,
        (None, vm) => {
            let point = || args.point.clone();
            vec![Job { vm: vm.clone().unwrap_or_default(), change: args.change(point) }]
        }
    };
    if args.dry_run {
        return dry_run(&desk, &jobs, args, json);
    }
    let mut done = Vec::new();
    for Job { vm, change } in &jobs {
        let began = Instant::now();
        let status = desk.change(vm, change)?;
        let seconds = began.elapsed().as_secs_f64();
        if !json {
            println!("{}", said(vm, change, seconds));
        }
        done.push((seconds, status));
    }
    if json {
        print_json(args, &done);
    }
    Ok(())
}

impl Args {
    fn change(&self, point: impl FnOnce() -> String) -> Change {
        match (self.undo, self.accept) {
            (true, _) => Change::Undo,
            (_, true) => Change::Accept,
            _ => Change::To(point()),
        }
    }
}

fn jobs_of_group(desk: &Desk<'_>, group: &str, args: &Args) -> anyhow::Result<Vec<Job>> {
    let vms = desk.vms()?;
    let member = |status: &StreamStatus| {
        let points = desk.points(&status.vm)?.into_iter().map(|point| point.sealed).collect();
        anyhow::Ok(Member { vm: status.vm.clone(), points })
    };
    let members = vms.iter().map(member).collect::<anyhow::Result<Vec<_>>>()?;
    if args.undo || args.accept {
        let of_group = vms_of(&members, group);
        let restored = vms.iter().filter(|status| status.restore.is_some() && of_group.contains(&status.vm));
        let jobs: Vec<Job> =
            restored.map(|status| Job { vm: status.vm.clone(), change: args.change(String::new) }).collect();
        if jobs.is_empty() {
            return Err(anyhow::anyhow!("no VM of a group {group:?} is restored to a point"))
                .with_code(Code::Refused);
        }
        return Ok(jobs);
    }
    let select: Select = args.point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
    let shared = shared_point(&members, group, &select).map_err(anyhow::Error::msg);
    let points = shared.with_code(Code::Refused)?.points.into_iter();
    Ok(points.map(|(vm, point)| Job { vm, change: Change::To(point.to_string()) }).collect())
}

fn dry_run(desk: &Desk<'_>, jobs: &[Job], args: &Args, json: bool) -> anyhow::Result<()> {
    let mut estimates = Vec::new();
    for job in jobs {
        if let Change::To(point) = &job.change {
            estimates.push((&job.vm, desk.estimate(&job.vm, point)?));
        }
    }
    if json {
        let object = |(vm, estimate): &(&String, Estimate)| json!({ "vm": vm, "fits": estimate.fits(), "estimate": estimate });
        let vms: Vec<_> = estimates.iter().map(object).collect();
        println!("{}", json!({ "ok": true, "dry_run": true, "group": args.group, "vms": vms }));
        return Ok(());
    }
    for (vm, estimate) in &estimates {
        print_estimate(vm, estimate);
    }
    Ok(())
}

fn print_estimate(vm: &str, estimate: &Estimate) {
    let point = &estimate.point.point;
    println!("{vm} would become what it was at {} ({}, {}):", point.taken_at, point.id, point.consistency);
    for disk in &estimate.disks {
        println!("  disk {} of {}: up to {} are written", disk.disk, Size(disk.size), Size(disk.bytes));
    }
    let (layers, runs) = (estimate.layers, estimate.runs);
    println!("  from {layers} layers of the journal, in {runs} runs");
    let (bytes, free) = (Size(estimate.bytes), Size(estimate.free));
    let room = if estimate.fits() { "which has" } else { "WHICH HAS ONLY" };
    println!("  up to {bytes} go to the journal, to be able to undo it, {room} {free} free");
    let period = Period(Duration::from_secs(estimate.seconds.ceil() as u64));
    println!("  takes about {period}; replication waits from then on. Nothing was changed.");
}

fn said(vm: &str, change: &Change, seconds: f64) -> String {
    match change {
        Change::To(_) => format!(
            "{vm} is restored ({seconds:.1} s). Replication waits; `restore {vm} --undo` lets it go on, \
             `restore {vm} --accept` keeps it so."
        ),
        Change::Undo => format!("{vm} is as replication left it ({seconds:.1} s), and replicates on."),
        Change::Accept => {
            format!("{vm} stays as it is restored. Older points are kept; to replicate it again, begin anew.")
        }
    }
}

fn print_json(args: &Args, done: &[(f64, StreamStatus)]) {
    let object = |(seconds, status): &(f64, StreamStatus)| json!({ "vm": status.vm, "seconds": seconds, "status": status });
    let mut answer = match (&args.group, done) {
        (None, [one]) => object(one),
        (group, all) => json!({ "group": group, "vms": all.iter().map(object).collect::<Vec<_>>() }),
    };
    answer["ok"] = true.into();
    println!("{answer}");
}
