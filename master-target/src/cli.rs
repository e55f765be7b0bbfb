//! What commands ask of the service, or do themselves where none runs, and `status`.

mod desk;
pub(crate) mod drill;
pub(crate) mod export;
pub(crate) mod points;
pub(crate) mod restore;
pub(crate) mod verify;

use std::fs::File;

use engine::{
    service::{
        admin::{self, AdminError},
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
    journal::Phase,
    status::StreamStatus,
};
use serde_json::json;

/// Asks the service; `None` if it does not run.
fn ask(config: &Config, request: &Request, json: bool) -> anyhow::Result<Option<Response>> {
    ask_with_file(config, request, None, json)
}

/// Asks the service to do something with a file; `None` if it does not run.
fn ask_with_file(
    config: &Config,
    request: &Request,
    file: Option<&File>,
    json: bool,
) -> anyhow::Result<Option<Response>> {
    let mut progress: Option<Progress> = None;
    let answer = admin::call_with_file(&config.admin, request, file, |step| {
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
            let full =
                if stream.journal_nearly_full { ", nearly full: the oldest points go soon" } else { "" };
            println!("  journal {}{full}", Size(bytes));
        }
        if let Some(Phase::Restoring | Phase::Undoing) = stream.restore {
            println!("  under way or interrupted; the same `restore` again goes on, `--undo` leads back");
        }
        if let Some(report) = stream.verification.filter(|report| !report.is_over()) {
            let (done, all) = (report.coverage.done(), report.coverage.leaves);
            println!("  verifying point {}: {done} of {all} leaves", report.point);
        }
        if let Some((bytes, of)) = stream.scrub.as_ref().and_then(|scrub| Some((scrub.bytes?, scrub.of))) {
            println!("  scrub: {} of about {} read in this pass", Size(bytes), Size(of));
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
