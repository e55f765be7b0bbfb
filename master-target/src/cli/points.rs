//! `points`, `pin` and `unpin`.

use std::collections::BTreeMap;

use engine::{
    point::{Point, PointId},
    service::quantity::Size,
};
use master_target::{
    admin::{Request, Response},
    config::Config,
    proof::Verdict,
    status::PointStatus,
};
use serde_json::json;

use super::{ask, desk::Desk, find};

#[derive(Debug, clap::Args)]
pub(crate) struct PinArgs {
    /// The VM.
    vm: String,
    /// `latest`, `latest-application-consistent`, `before-failback`, the point's id, or a time: the newest point taken at
    /// or before it.
    point: String,
}

/// `points VM`. Locks nothing.
pub(crate) fn list(config: &Config, vm: &str, json: bool) -> anyhow::Result<()> {
    let (points, verdicts) = match ask(config, &Request::Points { vm: vm.to_owned() }, json)? {
        Some(Response::Points(points)) => (points, verdicts_of(config, vm, json)?),
        Some(_) => anyhow::bail!("the service answered something else; is it of this version?"),
        None => {
            let home = config.home()?;
            let stream = find(&home, vm)?;
            (PointStatus::all(&home.state(stream)?), home.verdicts(stream))
        }
    };
    if json {
        println!("{}", json!({ "ok": true, "vm": vm, "points": points, "verdicts": verdicts }));
        return Ok(());
    }
    if points.is_empty() {
        println!("No point is sealed yet: the first one follows the full copy.");
    }
    for point in &points {
        println!("{}", line(point, verdicts.get(&point.sealed.point.id)));
    }
    Ok(())
}

fn verdicts_of(config: &Config, vm: &str, json: bool) -> anyhow::Result<BTreeMap<PointId, Verdict>> {
    match ask(config, &Request::Verdicts { vm: vm.to_owned() }, json)? {
        Some(Response::Verdicts(verdicts)) => Ok(verdicts),
        _ => anyhow::bail!("the service has just stopped: try again"),
    }
}

/// `pin VM POINT`, `unpin VM POINT`.
pub(crate) fn pin(config: &Config, args: &PinArgs, pinned: bool, json: bool) -> anyhow::Result<()> {
    let sealed = Desk::open(config, json)?.pin(&args.vm, &args.point, pinned)?;
    let (vm, point) = (&args.vm, &sealed.point);
    if json {
        println!("{}", json!({ "ok": true, "vm": vm, "point": sealed, "pinned": pinned }));
    } else if pinned {
        println!("{vm}: the point {} of {} stays until `unpin {vm} {}`.", point.id, point.taken_at, point.id);
    } else {
        println!("{vm}: retention has the point {} of {} again.", point.id, point.taken_at);
    }
    Ok(())
}

fn line(status: &PointStatus, verdict: Option<&Verdict>) -> String {
    let point = &status.sealed.point;
    let how = match point.frozen_us {
        _ if point.is_before_failback() => "as found at home".to_owned(),
        0 => format!("{} tries", point.barrier_tries),
        us => format!("frozen {:.1} ms", us as f64 / 1000.0),
    };
    let mut line = format!(
        "{}  {}  {}  {how}  journal {}",
        point.id,
        point.taken_at,
        point.consistency,
        Size(status.cost_bytes)
    );
    line += if status.pinned { "  pinned" } else { "" };
    line.extend(remarks(point).map(|remark| format!("  {remark}")));
    line.extend(verdict.map(|verdict| format!("  {verdict}")));
    line
}

/// What is to be known of a point besides.
fn remarks(point: &Point) -> impl Iterator<Item = String> + '_ {
    let application = point.application.as_ref().map(|application| application.to_string());
    let group = point.group.as_ref().map(|mark| {
        let missing = match &mark.missing[..] {
            [] => String::new(),
            missing => format!(" without {}", missing.join(", ")),
        };
        let (barrier, with, skew_ms) = (mark.barrier, mark.members.join(", "), mark.skew_us as f64 / 1000.0);
        format!("group {} (barrier {barrier}, with {with}{missing}, skew {skew_ms:.1} ms)", mark.group)
    });
    application.into_iter().chain(group)
}
