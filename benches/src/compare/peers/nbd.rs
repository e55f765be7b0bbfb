//! `nbdcopy` and `qemu-img convert`, each to a `qemu-nbd` that serves the target.

use homeward::lab::tool::Running;

use super::{Job, PORT, Servers};

/// Ends when the last client has gone.
pub(super) fn serve(job: &Job) -> anyhow::Result<Servers> {
    let server = job.link.far.tool("qemu-nbd").args(["--format=raw", "--cache=writeback", "--discard=unmap"]);
    // Several connections at once, as `nbdcopy` likes them.
    let server = server.arg("--shared=8").arg(format!("--bind={}", job.link.far.address));
    let server = server.arg(format!("--port={PORT}")).arg(job.target).start()?;
    Ok(Servers { running: vec![server], end: true })
}

fn uri(job: &Job) -> String {
    format!("nbd://{}", job.link.far.port(PORT))
}

pub(super) fn copy(job: &Job) -> anyhow::Result<Vec<Running>> {
    // The target is new: zeros need not be written.
    let copy = job.link.near.tool("nbdcopy").arg("--destination-is-zero").arg(job.source).arg(uri(job));
    Ok(vec![copy.start()?])
}

pub(super) fn convert(job: &Job) -> anyhow::Result<Vec<Running>> {
    let options = ["convert", "-n", "--target-is-zero", "-t", "writeback", "-f", "raw", "-O", "raw"];
    let convert = job.link.near.tool("qemu-img").args(options).arg(job.source).arg(uri(job));
    Ok(vec![convert.start()?])
}
