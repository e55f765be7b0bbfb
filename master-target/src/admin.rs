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

use crate::{
    drill::{DrillStatus, Drills, Place, Plan},
    driver::{RestoreRequest, Server},
    journal::SealedPoint,
    proof::{Verdict, Verified},
    status::StreamStatus,
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
    Points(Vec<SealedPoint>),
    /// To [`Request::Restore`] and [`Request::Undo`].
    Restored(Box<StreamStatus>),
    /// To [`Request::Verify`].
    Verified(Box<Verified>),
    /// To [`Request::Verdicts`].
    Verdicts(BTreeMap<PointId, Verdict>),
    /// To [`Request::Drill`] and [`Request::StopDrill`].
    Drill(Box<DrillStatus>),
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
        Request::Points { vm } => Response::Points(server.points(find(vm).await?)?),
        Request::Restore { vm, point } => {
            let select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
            let stream = find(vm).await?;
            let status = server
                .restore(stream, RestoreRequest::To(select), reporter)
                .await
                .with_code(Code::Refused)?;
            Response::Restored(Box::new(status))
        }
        Request::Undo { vm } => {
            let stream = find(vm).await?;
            let status =
                server.restore(stream, RestoreRequest::Undo, reporter).await.with_code(Code::Refused)?;
            Response::Restored(Box::new(status))
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
        Request::Drills => Response::Drills(drills.list()),
        Request::StopDrill { id } => {
            let status = blocking(move || drills.stop(id)).await?.with_code(Code::Refused)?;
            Response::Drill(Box::new(status))
        }
    };
    Ok(response)
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
