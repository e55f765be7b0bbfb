//! Output of the reporting commands.

use std::time::Duration;

use engine::{
    point::Consistency,
    service::{
        admin::call,
        quantity::{Period, Rate, Size},
    },
};
use serde_json::json;

use crate::{
    admin::{AgentStatus, Request, Response},
    config::Config,
    node::{PointRecord, PointState},
};

fn ask(config: &Config, request: &Request) -> anyhow::Result<Response> {
    Ok(call(&config.admin, request, |_| ())?)
}

/// `status`.
pub(crate) fn status(config: &Config, json: bool) -> anyhow::Result<()> {
    let Response::Status(status) = ask(config, &Request::Status)? else { return other_version() };
    if json {
        let mut object = serde_json::to_value(&status)?;
        object["ok"] = true.into();
        println!("{object}");
    } else {
        print!("{}", describe(&status));
    }
    Ok(())
}

/// `point`.
pub(crate) fn point(config: &Config, wait: bool, application: bool, json: bool) -> anyhow::Result<()> {
    match ask(config, &Request::Point { wait, application })? {
        Response::Durable(point) if application && point.consistency < Consistency::ApplicationConsistent => {
            let failed = point.application.and_then(|application| application.failed);
            let why =
                failed.map_or_else(|| "nobody asked applications to hold".into(), |step| step.to_string());
            anyhow::bail!("point {} is durable, but {} only: {why}", point.id, point.consistency)
        }
        Response::Durable(point) if json => println!("{}", json!({ "ok": true, "point": point })),
        Response::Durable(point) => println!("{}", point.id),
        Response::Requested if json => println!("{}", json!({ "ok": true, "requested": true })),
        Response::Requested => {
            println!("A point was requested; `homeward-agent status` shows it when it is made.")
        }
        Response::Status(_) => return other_version(),
    }
    Ok(())
}

fn other_version() -> anyhow::Result<()> {
    anyhow::bail!("the service answered something else; is it of this version?")
}

fn seconds(seconds: f64) -> Period {
    Period(Duration::from_millis((seconds * 10.0).round() as u64 * 100))
}

fn describe(status: &AgentStatus) -> String {
    let node = &status.node;
    let mut lines = vec![format!("{}  {}", node.vm, node.activity)];
    let mut line = |text: String| lines.push(format!("  {text}"));
    line(match node.connected_s {
        Some(for_s) => format!("connected to {} for {}", status.server, seconds(for_s)),
        None => format!("{} ({})", node.connection, status.server),
    });
    if let Some(copy) = &node.copy {
        let percent = (copy.done as f64 / copy.total.max(1) as f64 * 100.0) as u64;
        let left = copy.eta_s.map_or("unknown time".to_owned(), |eta| seconds(eta).to_string());
        let (done, total, rate) = (Size(copy.done), Size(copy.total), Rate(copy.rate));
        line(format!("copied {done} of {total} ({percent} %), {rate}, {left} left"));
    }
    if let Some(resync) = &node.resync {
        let left = resync.eta_s.map_or("unknown time".to_owned(), |eta| seconds(eta).to_string());
        let (done, total) = (Size(resync.total - resync.left), Size(resync.total));
        line(format!("compared {done} of {total}, {} of it equal, {left} left", Size(resync.equal)));
    }
    line(format!(
        "behind by {} and {}; {} to send",
        Size(node.lag_bytes),
        seconds(node.lag_s),
        Size(node.dirty_bytes)
    ));
    let tracker = serde_json::to_value(node.tracker).unwrap_or_default();
    line(format!(
        "tracker {}, a point every {}, compression level {}",
        tracker.as_str().unwrap_or("?"),
        seconds(status.point_interval_s),
        node.compression_level
    ));
    for disk in &status.disks {
        line(format!("{}  {}  {}  tracking {}", disk.name, disk.device, Size(disk.bytes), disk.continuity));
    }
    for record in node.points.iter().rev().take(5) {
        line(describe_point(record));
    }
    let troubles = [
        ("the other side waits", &node.hold),
        ("trouble", &node.trouble),
        ("connection", &node.connection_error),
        ("no point", &node.point_failure),
    ];
    for (what, trouble) in troubles {
        if let Some(trouble) = trouble {
            line(format!("{what}: {trouble}"));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn describe_point(PointRecord { point, state, .. }: &PointRecord) -> String {
    let state = match state {
        PointState::Sealed => "on its way",
        PointState::Durable => "durable",
        PointState::Unconfirmed => "unconfirmed",
    };
    let how = match point.frozen_us {
        0 => String::new(),
        us => format!(", frozen {:.1} ms", us as f64 / 1000.0),
    };
    let window = point.window_us as f64 / 1000.0;
    let application = point.application.as_ref().map(|how| format!(", {how}")).unwrap_or_default();
    format!(
        "point {}  {:.0}  {state}, {}, {} tries, window {window:.1} ms{how}{application}",
        point.id, point.taken_at, point.consistency, point.barrier_tries
    )
}
