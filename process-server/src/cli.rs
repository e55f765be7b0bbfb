//! Output of `status`.

use engine::{
    service::{
        admin,
        quantity::{Rate, Size},
    },
    units::Seq,
};
use process_server::{
    admin::{Request, ServerStatus, StreamReport},
    config::Config,
    node::TargetStatus,
};
use serde_json::json;

/// Asks the service and prints what it says.
pub(crate) fn status(config: &Config, as_json: bool) -> anyhow::Result<()> {
    let status: ServerStatus = admin::call(&config.admin, &Request::Status, |_| {})?;
    if as_json {
        let mut object = serde_json::to_value(&status)?;
        object["ok"] = json!(true);
        println!("{object}");
    } else {
        print!("{}", text(&status));
    }
    Ok(())
}

fn text(status: &ServerStatus) -> String {
    let limit = status.rate_limit.map_or("no limit".to_owned(), |rate| format!("at most {}", Rate(rate)));
    let mut text = format!(
        "spool {} of {}, to {} ({limit}), {} connections refused\n",
        status.spool_used, status.spool_limit, status.target, status.refused_connections
    );
    if status.streams.is_empty() {
        return text + "No VM has anything to do here.\n";
    }
    let head = ["VM", "AGENT", "TARGET", "SPOOLED", "DURABLE", "SPOOL", "IN", "OUT", "STATE"];
    let rows: Vec<[String; 9]> =
        std::iter::once(head.map(ToOwned::to_owned)).chain(status.streams.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    for row in &rows {
        let padded = |(column, cell): (usize, &String)| format!("{cell:<width$}", width = width(column));
        text += row.iter().enumerate().map(padded).collect::<Vec<_>>().join("  ").trim_end();
        text += "\n";
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
    use engine::units::{Epoch, StreamId};
    use process_server::node::{Counts, StreamStatus};

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
        };
        let text = text(&server);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "spool 3.0 MiB of 1.0 GiB, to mt:9443 (no limit), 0 connections refused");
        let column = |line: &str, what: &str| line.find(what).unwrap();
        assert_eq!(column(lines[1], "DURABLE"), column(lines[2], "1180"));
        assert_eq!(column(lines[1], "STATE"), column(lines[2], "waiting: the spool is full"));
    }
}
