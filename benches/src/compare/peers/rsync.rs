//! `rsync --inplace` to its daemon, without encryption: only what differs, found by rolling checksums.

use std::fs;

use anyhow::Context;
use homeward::lab::tool::Running;

use super::{Job, PORT, Servers};

/// The daemon goes on until it is killed.
pub(super) fn serve(job: &Job) -> anyhow::Result<Servers> {
    let folder = job.target.parent().context("the target has no folder")?;
    let config = job.dir.join("rsyncd.conf");
    let text = format!(
        "uid = root\ngid = root\nuse chroot = no\n[disk]\npath = {}\nread only = no\n",
        folder.display()
    );
    fs::write(&config, text)?;
    let daemon = job.link.far.tool("rsync").args(["--daemon", "--no-detach"]);
    let daemon = daemon.arg(format!("--address={}", job.link.far.address)).arg(format!("--port={PORT}"));
    let daemon = daemon.arg(format!("--config={}", config.display())).start()?;
    Ok(Servers { running: vec![daemon], end: false })
}

pub(super) fn send(job: &Job) -> anyhow::Result<Vec<Running>> {
    let name = job.target.file_name().context("the target has no name")?.to_string_lossy();
    // `--ignore-times`: that sizes are equal says nothing about a disk.
    let options = ["--inplace", "--no-whole-file", "--zc=zstd", "--zl=1", "--ignore-times", "--copy-devices"];
    let to = format!("rsync://{}/disk/{name}", job.link.far.port(PORT));
    let rsync = job.link.near.tool("rsync").args(options).arg(job.source).arg(to);
    Ok(vec![rsync.start()?])
}
