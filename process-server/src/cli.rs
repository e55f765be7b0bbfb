//! Output of `status`.

use std::time::Duration;

use engine::{
    service::{
        admin,
        quantity::{Period, Rate, Size},
    },
    units::Seq,
};
use process_server::{
    admin::{Request, Response, ServerStatus, StreamReport},
    config::Config,
    group::{GroupPoint, GroupPointState, GroupStatus},
    node::TargetStatus,
};
use serde_json::json;

/// Asks the service and prints what it says.
pub(crate) fn status(config: &Config, as_json: bool) -> anyhow::Result<()> {
    let Response::Status(status) = ask(config, &Request::Status)? else { return other_version() };
    if as_json {
        let mut object = serde_json::to_value(&status)?;
        object["ok"] = json!(true);
        println!("{object}");
    } else {
        print!("{}", text(&status));
    }
    Ok(())
}

/// Asks for a common point.
pub(crate) fn point(config: &Config, request: Request, as_json: bool) -> anyhow::Result<()> {
    match ask(config, &request)? {
        Response::Durable(point) if as_json => println!("{}", json!({ "ok": true, "point": point })),
        Response::Durable(point) => println!("{}", point.mark.barrier),
        Response::Requested if as_json => println!("{}", json!({ "ok": true, "requested": true })),
        Response::Requested => {
            println!("A point was requested; `homeward-process-server status` shows it when it is made.");
        }
        Response::Status(_) => return other_version(),
    }
    Ok(())
}

fn ask(config: &Config, request: &Request) -> anyhow::Result<Response> {
    Ok(admin::call(&config.admin, request, |_| {})?)
}

fn other_version() -> anyhow::Result<()> {
    anyhow::bail!("the service answered something else; is it of this version?")
}

fn text(status: &ServerStatus) -> String {
    let limit = status.rate_limit.map_or("no limit".to_owned(), |rate| format!("at most {}", Rate(rate)));
    let mut text = format!(
        "spool {} of {}, to {} ({limit}), {} connections refused\n",
        status.spool_used, status.spool_limit, status.target, status.refused_connections
    );
    if status.streams.is_empty() {
        text += "No VM has anything to do here.\n";
    } else {
        text += &table(status);
    }
    status.groups.iter().for_each(|group| text += &describe(group));
    text
}

fn table(status: &ServerStatus) -> String {
    let head = ["VM", "AGENT", "TARGET", "SPOOLED", "DURABLE", "SPOOL", "IN", "OUT", "STATE"];
    let rows: Vec<[String; 9]> =
        std::iter::once(head.map(ToOwned::to_owned)).chain(status.streams.iter().map(row)).collect();
    let mut text = String::new();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    for row in &rows {
        let padded = |(column, cell): (usize, &String)| format!("{cell:<width$}", width = width(column));
        text += row.iter().enumerate().map(padded).collect::<Vec<_>>().join("  ").trim_end();
        text += "\n";
    }
    text
}

fn describe(group: &GroupStatus) -> String {
    let period = |seconds: f64| Period(Duration::from_secs(seconds as u64));
    let every = group.interval_s.map_or("on demand".to_owned(), |s| format!("every {}", period(s)));
    let away: Vec<_> =
        group.members.iter().filter(|member| !member.connected).map(|member| member.vm.as_str()).collect();
    let mut text =
        format!("group {}: {} VMs, points {every}, {}\n", group.name, group.members.len(), group.activity);
    if !away.is_empty() {
        text += &format!("  not connected: {}\n", away.join(", "));
    }
    if let (Some(GroupPoint { mark, state, .. }), Some(ago)) = (&group.last, group.last_s) {
        let state = match state {
            GroupPointState::Sealed => "on its way",
            GroupPointState::Durable => "durable",
            GroupPointState::Unconfirmed => "unconfirmed",
        };
        text += &format!(
            "  barrier {}  {} ago  {state}, {} members, skew {:.1} ms\n",
            mark.barrier,
            period(ago),
            mark.members.len(),
            mark.skew_us as f64 / 1000.0
        );
        if !mark.missing.is_empty() {
            text += &format!("  made without: {}\n", mark.missing.join(", "));
        }
    }
    if let Some(failure) = &group.failure {
        text += &format!("  no point: {failure}\n");
    }
    text
}

fn row(report: &StreamReport) -> [String; 9] {
    let status = &report.status;
    let number = |Seq(seq): Seq| seq.to_string();
    let target = match status.target {
        TargetStatus::Idle => "idle",
        TargetStatus::Connecting => "connecting",
        TargetStatus::Connected => "connected",
        TargetStatus::Refused => "refused",
    };
    let state = match (&status.hold, &status.trouble) {
        (Some(hold), _) => format!("waiting: {hold}"),
        (None, Some(trouble)) => format!("trouble: {trouble}"),
        (None, None) => "well".to_owned(),
    };
    [
        status.vm.clone().unwrap_or_else(|| status.stream.to_string()),
        if status.agent_connected { "connected" } else { "away" }.to_owned(),
        target.to_owned(),
        number(status.spooled),
        number(status.durable),
        Size(status.spool_bytes.0).to_string(),
        Rate(report.bytes_per_second_in).to_string(),
        Rate(report.bytes_per_second_out).to_string(),
        state,
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use engine::{
        point::{BarrierId, GroupMark},
        units::{Epoch, StreamId},
    };
    use process_server::{
        group::{GroupCounts, MemberStatus, Partial},
        node::{Counts, StreamStatus},
    };

    use super::*;

    #[test]
    fn the_table_lines_up() {
        let status = StreamStatus {
            stream: StreamId::random(),
            vm: Some("web-01".into()),
            agent: Some("web-01-agent".into()),
            agent_connected: true,
            target: TargetStatus::Connected,
            spooled: Seq(1200),
            epoch: Epoch(3),
            durable: Seq(1180),
            spool_bytes: Size(3 << 20),
            in_flight: Size(0),
            hold: Some("the spool is full".into()),
            trouble: None,
            counts: Counts::default(),
        };
        let report = StreamReport { status, bytes_per_second_in: 1 << 20, bytes_per_second_out: 0 };
        let server = ServerStatus {
            target: "mt:9443".into(),
            spool_used: Size(3 << 20),
            spool_limit: Size(1 << 30),
            rate_limit: None,
            refused_connections: 0,
            streams: vec![report],
            groups: vec![group()],
        };
        let text = text(&server);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "spool 3.0 MiB of 1.0 GiB, to mt:9443 (no limit), 0 connections refused");
        let column = |line: &str, what: &str| line.find(what).unwrap();
        assert_eq!(column(lines[1], "DURABLE"), column(lines[2], "1180"));
        assert_eq!(column(lines[1], "STATE"), column(lines[2], "waiting: the spool is full"));
        assert_eq!(lines[3], "group shop: 2 VMs, points every 15m, waiting");
        assert_eq!(lines[4], "  not connected: db-01");
        let barrier = uuid::Uuid::from_u128(7);
        assert_eq!(lines[5], format!("  barrier {barrier}  1m 2s ago  durable, 1 members, skew 4.2 ms"));
        assert_eq!(lines[6], "  made without: db-01");
    }

    fn group() -> GroupStatus {
        let mark = GroupMark {
            group: "shop".into(),
            barrier: BarrierId(uuid::Uuid::from_u128(7)),
            members: vec!["web-01".into()],
            missing: vec!["db-01".into()],
            skew_us: 4200,
        };
        let member = |vm: &str, connected| MemberStatus { vm: vm.into(), connected };
        GroupStatus {
            name: "shop".into(),
            members: vec![member("web-01", true), member("db-01", false)],
            interval_s: Some(900.0),
            application: false,
            partial: Partial::Allow,
            activity: "waiting".into(),
            last: Some(GroupPoint { mark, state: GroupPointState::Durable, points: BTreeMap::new() }),
            last_s: Some(62.4),
            failure: None,
            counts: GroupCounts::default(),
        }
    }
}
