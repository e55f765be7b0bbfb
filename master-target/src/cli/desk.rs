//! Who does what a command wants: the service, if it runs, else this process, with the journals locked.

use std::fs::File;

use engine::{
    io::DirLock,
    service::{
        exit::{Code, WithCode},
        progress::{Progress, Show, Step},
    },
};
use master_target::{
    admin::{Request, Response},
    config::Config,
    export::{self, Exported},
    home::Home,
    journal::SealedPoint,
    replica::{Replica, ReplicaError},
    restore::{Estimate, Select},
    status::{PointStatus, StreamStatus},
};

use super::{ask, ask_with_file, find};

/// Who does it.
pub(super) enum Desk<'a> {
    Service(&'a Config, bool),
    Alone { home: Box<Home>, json: bool, _lock: DirLock },
}

/// What to do with a VM's disks.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// To a point: as [`Select`] parses.
    To(String),
    Undo,
    Accept,
}

impl<'a> Desk<'a> {
    pub(super) fn open(config: &'a Config, json: bool) -> anyhow::Result<Self> {
        if ask(config, &Request::Status, json)?.is_some() {
            return Ok(Self::Service(config, json));
        }
        let (home, lock) = config.open_home()?;
        Ok(Self::Alone { home: Box::new(home), json, _lock: lock })
    }

    fn ask(config: &Config, request: &Request, json: bool) -> anyhow::Result<Response> {
        ask(config, request, json)?.ok_or_else(stopped)
    }

    /// All VMs.
    pub(super) fn vms(&self) -> anyhow::Result<Vec<StreamStatus>> {
        match self {
            Self::Service(config, json) => match Self::ask(config, &Request::Status, *json)? {
                Response::Status(streams) => Ok(streams),
                _ => odd(),
            },
            Self::Alone { home, .. } => {
                home.streams()?.into_iter().map(|id| Ok(StreamStatus::at_rest(&home.state(id)?))).collect()
            }
        }
    }

    /// The points of a VM, oldest first.
    pub(super) fn points(&self, vm: &str) -> anyhow::Result<Vec<PointStatus>> {
        match self {
            Self::Service(config, json) => {
                match Self::ask(config, &Request::Points { vm: vm.to_owned() }, *json)? {
                    Response::Points(points) => Ok(points),
                    _ => odd(),
                }
            }
            Self::Alone { home, .. } => Ok(PointStatus::all(&home.state(find(home, vm)?)?)),
        }
    }

    /// What restoring a point would do.
    pub(super) fn estimate(&self, vm: &str, point: &str) -> anyhow::Result<Estimate> {
        match self {
            Self::Service(config, json) => {
                let request = Request::Estimate { vm: vm.to_owned(), point: point.to_owned() };
                match Self::ask(config, &request, *json)? {
                    Response::Estimate(estimate) => Ok(*estimate),
                    _ => odd(),
                }
            }
            Self::Alone { home, .. } => {
                let replica = home.open(find(home, vm)?)?;
                let point = select(&replica, point)?;
                Ok(replica.estimate(&point)?)
            }
        }
    }

    /// Changes a VM's disks, and says how it stands then.
    pub(super) fn change(&self, vm: &str, change: &Change) -> anyhow::Result<StreamStatus> {
        match self {
            Self::Service(config, json) => {
                let vm = vm.to_owned();
                let request = match change {
                    Change::To(point) => Request::Restore { vm, point: point.clone() },
                    Change::Undo => Request::Undo { vm },
                    Change::Accept => Request::Accept { vm },
                };
                match Self::ask(config, &request, *json)? {
                    Response::Restored(status) => Ok(*status),
                    _ => odd(),
                }
            }
            Self::Alone { home, json, .. } => {
                let mut replica = home.open_to_write(find(home, vm)?)?;
                change_alone(&mut replica, change, *json)?;
                Ok(StreamStatus::at_rest(replica.state()))
            }
        }
    }

    /// Writes a disk as it was at a point to `file`.
    pub(super) fn export(
        &self,
        vm: &str,
        point: &str,
        plan: &export::Plan,
        file: &File,
    ) -> anyhow::Result<Exported> {
        match self {
            Self::Service(config, json) => {
                let request =
                    Request::Export { vm: vm.to_owned(), point: point.to_owned(), plan: plan.clone() };
                match ask_with_file(config, &request, Some(file), *json)?.ok_or_else(stopped)? {
                    Response::Exported(exported) => Ok(*exported),
                    _ => odd(),
                }
            }
            Self::Alone { home, json, .. } => {
                let mut replica = home.open(find(home, vm)?)?;
                let point = select(&replica, point)?;
                let image = replica.open_image(&point)?;
                let mut progress: Option<Progress> = None;
                let mut show = |what: &'static str, done, total| {
                    let progress =
                        progress.get_or_insert_with(|| Progress::new(Show::detect(*json), what, total));
                    progress.update(Step { what: what.into(), done, total });
                    true
                };
                let exported = export::export(image, &point.point, plan, file, &mut show);
                exported.or_else(|error| {
                    let code = error.code();
                    Err(error).with_code(code)
                })
            }
        }
    }

    /// Pins a point, or lets retention have it again.
    pub(super) fn pin(&self, vm: &str, point: &str, pinned: bool) -> anyhow::Result<SealedPoint> {
        match self {
            Self::Service(config, json) => {
                let request = Request::Pin { vm: vm.to_owned(), point: point.to_owned(), pinned };
                match Self::ask(config, &request, *json)? {
                    Response::Pinned(point) => Ok(*point),
                    _ => odd(),
                }
            }
            Self::Alone { home, .. } => {
                let mut replica = home.open(find(home, vm)?)?;
                let point = select(&replica, point)?;
                replica.pin(&point, pinned)?;
                Ok(point)
            }
        }
    }
}

fn stopped() -> anyhow::Error {
    anyhow::anyhow!("the service has just stopped: try again")
}

fn odd<T>() -> anyhow::Result<T> {
    anyhow::bail!("the service answered something else; is it of this version?")
}

fn select(replica: &Replica, point: &str) -> anyhow::Result<SealedPoint> {
    let select: Select = point.parse().map_err(anyhow::Error::msg).with_code(Code::Usage)?;
    replica.select(&select).with_code(Code::Refused)
}

/// However it ends, even by `kill -9`: the same command goes on.
fn change_alone(replica: &mut Replica, change: &Change, json: bool) -> anyhow::Result<()> {
    let mut progress: Option<Progress> = None;
    let mut show = |what: &str, done, all| {
        progress.get_or_insert_with(|| Progress::new(Show::detect(json), what, all)).set(done);
        true
    };
    let refused = |result: Result<(), ReplicaError>| result.with_code(Code::Refused);
    match change {
        Change::To(point) => {
            let point = select(replica, point)?;
            Ok(replica.restore(&point, &mut |done, all| show("restoring", done, all))?)
        }
        Change::Undo => refused(replica.undo_restore(&mut |done, all| show("undoing", done, all))),
        Change::Accept => refused(replica.accept_restore()),
    }
}
