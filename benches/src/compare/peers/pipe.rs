//! The disk through `zstd` into `socat`, and out of `socat` through `zstd` into the target.

use std::{fs::File, io::pipe};

use homeward::lab::tool::{Running, Tool};

use super::{Job, PORT, Servers};

/// `socat` moves 8 KiB at a time by itself.
const BUFFER: &str = "-b262144";

pub(super) fn serve(job: &Job) -> anyhow::Result<Servers> {
    let (from, to) = pipe()?;
    let listen = format!("TCP-LISTEN:{PORT},bind={},reuseaddr", job.link.far.address);
    let socat = job.link.far.tool("socat").args(["-u", BUFFER, &listen, "STDOUT"]).stdout(to);
    let zstd = Tool::new("zstd").args(["-d", "-q", "-f", "--sparse", "-o"]).arg(job.target).stdin(from);
    Ok(Servers { running: vec![socat.start()?, zstd.start()?], end: true })
}

pub(super) fn send(job: &Job, level: u8) -> anyhow::Result<Vec<Running>> {
    let (from, to) = pipe()?;
    let disk = File::open(job.source)?;
    let zstd = Tool::new("zstd").args(["-q".to_owned(), "-c".to_owned(), format!("-{level}")]);
    let connect = format!("TCP:{}", job.link.far.port(PORT));
    let socat = job.link.near.tool("socat").args(["-u", BUFFER, "STDIN", &connect]).stdin(from);
    Ok(vec![zstd.stdin(disk).stdout(to).start()?, socat.start()?])
}
