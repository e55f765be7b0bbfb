//! Output of the reporting commands, and restore without a running service.

pub(crate) mod drill;
pub(crate) mod verify;

use engine::{
    service::{
        admin::{self, AdminError},
        exit::{Code, WithCode},
        progress::{Progress, Show},
        quantity::{Period, Size},
    },
    units::StreamId,
};
use jiff::Timestamp;
use master_target::{
    admin::{Request, Response, stream_of},
    config::Config,
    home::Home,
    journal::SealedPoint,
    restore::Select,
    status::StreamStatus,
};
use serde_json::json;

/// Asks the service; `None` if it does not run.
fn ask(config: &Config, request: &Request, json: bool) -> anyhow::Result<Option<Response>> {
    let mut progress: Option<Progress> = None;
    let answer = admin::call(&config.admin, request, |step| {
        progress
            .get_or_insert_with(|| Progress::new(Show::detect(json), step.what.clone(), step.total))
            .update(step);
    });
    match answer {
        Ok(response) => Ok(Some(response)),
        Err(AdminError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn find(home: &Home, vm: &str) -> anyhow::Result<StreamId> {
    let states = home.streams()?.into_iter().map(|id| Ok(StreamStatus::at_rest(&home.state(id)?)));
    stream_of(&states.collect::<anyhow::Result<Vec<_>>>()?, vm)
}

/// `status`.
pub(crate) fn status(config: &Config, json: bool) -> anyhow::Result<()> {
    let request = Request::Status;
    let Some(Response::Status(streams)) = ask(config, &request, json)? else {
        return Err(AdminError::NotRunning { path: config.admin.clone() }.into());
    };
    if json {
        println!("{}", json!({ "ok": true, "streams": streams }));
        return Ok(());
    }
    if streams.is_empty() {
        println!("No VM is replicated here yet.");
    }
    for stream in streams {
        println!("{}  {}", stream.vm, stream.state_word());
        println!("  agent {}, {} of disks, {} points", stream.agent, Size(stream.disk_bytes), stream.points);
        if let (Some(latest), Some(age)) = (&stream.latest, stream.point_age_seconds(Timestamp::now())) {
            let age = Period(std::time::Duration::from_secs(age as u64));
            println!("  newest point {} taken {age} ago", latest.point.id);
        }
        if let Some(bytes) = stream.journal_bytes {
            println!("  journal {}", Size(bytes));
        }
        if let Some(report) = stream.verification.filter(|report| !report.is_over()) {
            let (done, all) = (report.coverage.done(), report.coverage.leaves);
            println!("  verifying point {}: {done} of {all} leaves", report.point);
        }
        for finding in stream.scrub.iter().flat_map(|scrub| &scrub.findings) {
            let disk = finding.disk.as_ref().map(|disk| format!(" (disk {disk})")).unwrap_or_default();
            println!("  scrub: {}{disk} at byte {}: {}", finding.file, finding.offset, finding.what);
        }
        if let Some(hold) = stream.hold {
            println!("  waiting: {hold}");
        }
    }
    Ok(())
}

/// `points VM`.
pub(crate) fn points(config: &Config, vm: &str, json: bool) -> anyhow::Result<()> {
    let points: Vec<SealedPoint> = match ask(config, &Request::Points { vm: vm.to_owned() }, json)? {
        Some(Response::Points(points)) => points,
        Some(_) => anyhow::bail!("the service answered something else; is it of this version?"),
        None => {
            let home = config.home()?;
            home.state(find(&home, vm)?)?.points.into_values().collect()
        }
    };
    let verdicts = match ask(config, &Request::Verdicts { vm: vm.to_owned() }, json)? {
        Some(Response::Verdicts(verdicts)) => verdicts,
        Some(_) => anyhow::bail!("the service answered something else; is it of this version?"),
        None => {
            let home = config.home()?;
            home.verdicts(find(&home, vm)?)
        }
    };
    if json {
        println!("{}", json!({ "ok": true, "vm": vm, "points": points, "verdicts": verdicts }));
        return Ok(());
    }
    if points.is_empty() {
        println!("No point is sealed yet: the first one follows the full copy.");
    }
    for sealed in points {
        let point = &sealed.point;
        let how = match point.frozen_us {
            0 => format!("{} tries", point.barrier_tries),
            us => format!("frozen {:.1} ms", us as f64 / 1000.0),
        };
        let kind = serde_json::to_value(point.consistency)?;
        let kind = kind.as_str().unwrap_or_default();
        let proof = verdicts.get(&point.id).map(|verdict| format!("  {verdict}")).unwrap_or_default();
        println!(
            "{}  {}  {kind}  {how}  journal {}{proof}",
            point.id,
            point.taken_at,
            Size(sealed.log_bytes)
        );
    }
    Ok(())
}

/// `restore VM`: to `point`, or, without one, undo.
pub(crate) fn restore(config: &Config, vm: &str, point: Option<&str>, json: bool) -> anyhow::Result<()> {
    let request = match point {
        Some(point) => Request::Restore { vm: vm.to_owned(), point: point.to_owned() },
        None => Request::Undo { vm: vm.to_owned() },
    };
    let started = std::time::Instant::now();
    let status = match ask(config, &request, json)? {
        Some(Response::Restored(status)) => *status,
        Some(_) => anyhow::bail!("the service answered something else; is it of this version?"),
        None => restore_alone(config, vm, point, json)?,
    };
    let seconds = started.elapsed().as_secs_f64();
    if json {
        println!("{}", json!({ "ok": true, "vm": vm, "seconds": seconds, "status": status }));
        return Ok(());
    }
    match point {
        Some(_) => println!(
            "{vm} is restored ({seconds:.1} s). Replication waits; `restore {vm} --undo` lets it go on."
        ),
        None => println!("{vm} is as replication left it ({seconds:.1} s), and replicates on."),
    }
    Ok(())
}

/// The service does not run: the journal is locked and worked on here.
fn restore_alone(config: &Config, vm: &str, point: Option<&str>, json: bool) -> anyhow::Result<StreamStatus> {
    let (home, _lock) = config.open_home()?;
    let stream = find(&home, vm)?;
    let mut replica = home.open_to_write(stream)?;
    let mut progress: Option<Progress> = None;
    let mut show = |what: &str, done, all| {
        progress.get_or_insert_with(|| Progress::new(Show::detect(json), what, all)).set(done);
    };
    match point {
        Some(point) => {
            let select: Select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
            let point = replica.select(&select).with_code(Code::Refused)?;
            replica.restore(&point, &mut |done, all| show("restoring", done, all))?;
        }
        None => replica.undo_restore(&mut |done, all| show("undoing", done, all)).with_code(Code::Refused)?,
    }
    Ok(StreamStatus::at_rest(replica.state()))
}
