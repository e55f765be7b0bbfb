//! What the running service answers to the operator's commands, and how those commands ask.

use std::{collections::BTreeMap, sync::Arc};

use engine::{
    point::PointId,
    service::{
        admin::{Failure, Reporter},
        exit::{Code, WithCode},
    },
    units::StreamId,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{
    drill::{DrillStatus, Drills, Place, Plan},
    driver::{RestoreRequest, Server},
    export::{self, ExportError, Exported},
    image::PointImage,
    journal::SealedPoint,
    proof::{Verdict, Verified},
    restore::Estimate,
    status::{PointStatus, StreamStatus},
};

/// A question to the service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// How all VMs stand.
    Status,
    /// The points of a VM.
    Points {
        /// Its name.
        vm: String,
    },
    /// Restore a VM's disks.
    Restore {
        /// Its name.
        vm: String,
        /// `latest`, an id or a time.
        point: String,
    },
    /// Undo the restore of a VM's disks.
    Undo {
        /// Its name.
        vm: String,
    },
    /// Keep a VM's disks as they are restored, for good.
    Accept {
        /// Its name.
        vm: String,
    },
    /// What restoring a VM's disks would do.
    Estimate {
        /// Its name.
        vm: String,
        /// `latest`, an id or a time.
        point: String,
    },
    /// Have retention leave a point alone, or not any more.
    Pin {
        /// The VM.
        vm: String,
        /// `latest`, an id or a time.
        point: String,
        /// Whether it does.
        pinned: bool,
    },
    /// Compare a point of a VM with the source.
    Verify {
        /// Its name.
        vm: String,
        /// `latest`, an id or a time.
        point: String,
        /// Whether to answer only when it is done.
        wait: bool,
        /// Whether to do it although there is a certificate.
        again: bool,
    },
    /// Which points of a VM were verified.
    Verdicts {
        /// Its name.
        vm: String,
    },
    /// Serve a VM's disks as they were at a point.
    Drill {
        /// Its name.
        vm: String,
        /// `latest`, an id or a time.
        point: String,
        /// Only these of its disks; none means all.
        #[serde(default)]
        disks: Vec<String>,
        /// Where.
        place: Place,
        /// Whether clients may write.
        #[serde(default)]
        writable: bool,
    },
    /// Write a disk of a VM, as it was at a point, to the file that comes with the request.
    Export {
        /// Its name.
        vm: String,
        /// `latest`, an id or a time.
        point: String,
        /// Which disk, and how.
        plan: export::Plan,
    },
    /// The drills that run.
    Drills,
    /// End a drill.
    StopDrill {
        /// Its number.
        id: u64,
    },
}

/// Its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Vec<StreamStatus>),
    /// To [`Request::Points`].
    Points(Vec<PointStatus>),
    /// To [`Request::Restore`], [`Request::Undo`] and [`Request::Accept`].
    Restored(Box<StreamStatus>),
    /// To [`Request::Estimate`].
    Estimate(Box<Estimate>),
    /// To [`Request::Pin`].
    Pinned(Box<SealedPoint>),
    /// To [`Request::Verify`].
    Verified(Box<Verified>),
    /// To [`Request::Verdicts`].
    Verdicts(BTreeMap<PointId, Verdict>),
    /// To [`Request::Drill`] and [`Request::StopDrill`].
    Drill(Box<DrillStatus>),
    /// To [`Request::Export`].
    Exported(Box<Exported>),
    /// To [`Request::Drills`].
    Drills(Vec<DrillStatus>),
}

/// Answers a request.
pub async fn answer(
    server: Arc<Server>,
    drills: Arc<Drills>,
    request: Request,
    reporter: Reporter,
) -> Result<Response, Failure> {
    let find = async |vm: String| {
        let server = Arc::clone(&server);
        tokio::task::spawn_blocking(move || stream_of(&server.statuses()?, &vm))
            .await
            .map_err(anyhow::Error::new)?
    };
    let response = match request {
        Request::Status => {
            let server = Arc::clone(&server);
            let statuses = tokio::task::spawn_blocking(move || server.statuses())
                .await
                .map_err(anyhow::Error::new)??;
            Response::Status(statuses)
        }
        Request::Points { vm } => {
            let stream = find(vm).await?;
            Response::Points(blocking(move || server.points(stream)).await??)
        }
        Request::Restore { vm, point } => {
            let select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
            restore(Arc::clone(&server), find(vm).await?, RestoreRequest::To(select), reporter).await?
        }
        Request::Undo { vm } => {
            restore(Arc::clone(&server), find(vm).await?, RestoreRequest::Undo, reporter).await?
        }
        Request::Accept { vm } => {
            restore(Arc::clone(&server), find(vm).await?, RestoreRequest::Accept, reporter).await?
        }
        Request::Estimate { vm, point } => {
            let select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
            let stream = find(vm).await?;
            Response::Estimate(Box::new(server.estimate(stream, select).await.with_code(Code::Refused)?))
        }
        Request::Pin { vm, point, pinned } => {
            let select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
            let stream = find(vm).await?;
            Response::Pinned(Box::new(server.pin(stream, select, pinned).await.with_code(Code::Refused)?))
        }
        Request::Verify { vm, point, wait, again } => {
            let select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
            let stream = find(vm).await?;
            let verified = server
                .verify(stream, select, again, wait.then_some(reporter))
                .await
                .with_code(Code::Refused)?;
            Response::Verified(Box::new(verified))
        }
        Request::Verdicts { vm } => {
            let stream = find(vm).await?;
            Response::Verdicts(blocking(move || server.verdicts(stream)).await?)
        }
        Request::Drill { vm, point, disks, place, writable } => {
            let select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
            let stream = find(vm.clone()).await?;
            let point = server.find_point(stream, &select).with_code(Code::Refused)?;
            let image = server.open_image(stream, &point).await.with_code(Code::Refused)?;
            let plan = Plan { vm, disks, place, writable };
            let start = move || drills.start(image, &point.point, &plan);
            let status = blocking(start).await?.with_code(Code::Refused)?;
            Response::Drill(Box::new(status))
        }
        Request::Export { vm, point, plan } => {
            let select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
            let stream = find(vm).await?;
            let point = server.find_point(stream, &select).with_code(Code::Refused)?;
            let image = server.open_image(stream, &point).await.with_code(Code::Refused)?;
            Response::Exported(Box::new(export_to_file(image, point, plan, reporter).await?))
        }
        Request::Drills => Response::Drills(drills.list()),
        Request::StopDrill { id } => {
            let status = blocking(move || drills.stop(id)).await?.with_code(Code::Refused)?;
            Response::Drill(Box::new(status))
        }
    };
    Ok(response)
}

async fn restore(
    server: Arc<Server>,
    stream: StreamId,
    request: RestoreRequest,
    reporter: Reporter,
) -> anyhow::Result<Response> {
    let status = server.restore(stream, request, reporter).await.with_code(Code::Refused)?;
    Ok(Response::Restored(Box::new(status)))
}

/// Exports on a thread of its own, which may hang in a pipe that nobody reads: the end of the service does not wait for it.
async fn export_to_file(
    image: PointImage,
    point: SealedPoint,
    plan: export::Plan,
    reporter: Reporter,
) -> anyhow::Result<Exported> {
    let file = reporter.file();
    let file = file.ok_or_else(|| anyhow::anyhow!("no file came with the request")).with_code(Code::Usage)?;
    let (done, result) = oneshot::channel();
    let work = move || {
        let mut go_on = |what: &'static str, done, all| {
            reporter.report(what, done, all);
            !reporter.is_gone()
        };
        // Who asked may have gone.
        let _ = done.send(export::export(image, &point.point, &plan, &file, &mut go_on));
    };
    std::thread::Builder::new().name("export".into()).spawn(work)?;
    let exported: Result<Exported, ExportError> = result.await?;
    exported.or_else(|error| {
        let code = error.code();
        Err(error).with_code(code)
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// The stream that replicates `vm`; of several, the one with the newest point.
pub fn stream_of(statuses: &[StreamStatus], vm: &str) -> anyhow::Result<StreamId> {
    let newest = |status: &&StreamStatus| status.latest.as_ref().map(|latest| latest.point.taken_at);
    let found = statuses.iter().filter(|status| status.vm == vm).max_by_key(newest);
    found
        .map(|status| status.stream)
        .ok_or_else(|| {
            let known: Vec<&str> = statuses.iter().map(|status| status.vm.as_str()).collect();
            anyhow::anyhow!("no VM {vm:?} is replicated here; there are: {}", known.join(", "))
        })
        .with_code(Code::Refused)
}
