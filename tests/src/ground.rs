//! What the tests on real disks do alike: services changed between starts, waits that end.

use std::{
    thread,
    time::{Duration, Instant},
};

use engine::{
    point::Point,
    service::{admin::AdminError, shutdown::Shutdown},
};
use homeward::lab::{Lab, LabError, Look, Options, Service, build_services, is_release};
use jiff::Timestamp;

/// The binaries of the services are built once in each process; everything is as in a usual lab.
///
/// # Panics
/// If they do not build.
#[must_use]
pub fn options(stop: &Shutdown) -> Options {
    static BINARIES: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    let binaries =
        BINARIES.get_or_init(|| build_services(is_release()).unwrap_or_else(|error| panic!("{error}")));
    Options { stop: stop.clone(), ..Options::new(binaries.clone()) }
}

/// Changes a service's configuration; it takes effect at its next start.
///
/// # Panics
/// If it cannot be read or written.
pub fn configure(service: &Service, change: impl FnOnce(&mut toml::Table)) {
    service.configure(change).unwrap();
}

/// A point, and when it was wished for and had.
#[derive(Clone, Debug)]
pub struct Had {
    /// The point.
    pub point: Point,
    /// Just before it was wished for.
    pub from: Instant,
    /// When it was taken, as it says by the wall clock that it shares with whoever asked.
    pub taken: Instant,
    /// Just after it was known to be durable.
    pub until: Instant,
}

/// Wishes for a point until there is one, as long as the agent lives. That it may make none when the machine is very
/// busy, and says so, is no broken promise.
///
/// # Errors
/// See [`Lab::point_now`].
pub fn had(lab: &Lab, vm: &str) -> Result<Had, LabError> {
    had_by(|| lab.point_now(vm), vm)
}

fn had_by(ask: impl Fn() -> Result<Point, LabError>, vm: &str) -> Result<Had, LabError> {
    loop {
        let from = Instant::now();
        match ask() {
            Err(LabError::Admin { source: AdminError::Failed(failure), .. })
                if failure.message.starts_with("no point was made") =>
            {
                println!("{vm}: {}", failure.message);
            }
            point => {
                let (point, until) = (point?, Instant::now());
                let age = Timestamp::now().duration_since(point.taken_at).unsigned_abs();
                return Ok(Had { point, from, taken: until - age, until });
            }
        }
    }
}

/// [`had`] within `limit`. `stop` is that of the lab.
///
/// # Panics
/// If there is none; everything in the lab is interrupted then.
#[must_use]
pub fn had_within(lab: &Lab, stop: &Shutdown, vm: &str, limit: Duration) -> Had {
    await_point(lab, stop, vm, limit, || lab.point_now(vm))
}

/// The same, of a point for which applications hold. Whether it became application-consistent, it says.
///
/// # Panics
/// As [`had_within`].
#[must_use]
pub fn held_within(lab: &Lab, stop: &Shutdown, vm: &str, limit: Duration) -> Had {
    await_point(lab, stop, vm, limit, || lab.application_point_now(vm))
}

fn await_point(
    lab: &Lab,
    stop: &Shutdown,
    vm: &str,
    limit: Duration,
    ask: impl Fn() -> Result<Point, LabError> + Send,
) -> Had {
    thread::scope(|scope| {
        let asking = scope.spawn(|| had_by(ask, vm));
        let waited = lab.wait(&format!("a point of {vm}"), limit, || {
            if asking.is_finished() {
                return Ok(Look::Done(()));
            }
            Ok(Look::NotYet(lab.agent_status(vm)?.describe()))
        });
        if waited.is_err() {
            stop.request();
        }
        let had = asking.join().expect("asking panicked");
        waited.and(had).unwrap_or_else(|error| panic!("{error}\n{}", logs(lab)))
    })
}

/// The end of every service's log.
#[must_use]
pub fn logs(lab: &Lab) -> String {
    lab.services().map(|service| format!("--- {}\n{}\n", service.name(), service.log_tail(15))).collect()
}
