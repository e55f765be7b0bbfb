//! Waiting on conditions, with a deadline, until interrupted. Nobody sleeps and hopes.

use std::{
    thread,
    time::{Duration, Instant},
};

use engine::service::shutdown::Shutdown;

use super::error::LabError;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a look found.
#[derive(Debug)]
pub enum Look<T> {
    /// It is so.
    Done(T),
    /// Not yet; this is how it stands, for the message should it stay so.
    NotYet(String),
}

/// Looks again and again until it is done.
///
/// # Errors
/// [`LabError::Late`] after `limit`, [`LabError::Interrupted`], and what `look` says.
pub fn wait_until<T>(
    stop: &Shutdown,
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Look<T>, LabError>,
) -> Result<T, LabError> {
    let began = Instant::now();
    loop {
        check(stop)?;
        let last = match look()? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(last) => last,
        };
        if began.elapsed() >= limit {
            return Err(LabError::Late { what: what.into(), waited: limit, last });
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Lets a workload run for `time`.
///
/// # Errors
/// [`LabError::Interrupted`].
pub fn let_pass(stop: &Shutdown, time: Duration) -> Result<(), LabError> {
    let began = Instant::now();
    while let Some(left) = time.checked_sub(began.elapsed()) {
        check(stop)?;
        thread::sleep(left.min(LOOK_EVERY));
    }
    check(stop)
}

/// Stops what must not go on after a signal; call it between pieces of work.
///
/// # Errors
/// [`LabError::Interrupted`].
pub fn check(stop: &Shutdown) -> Result<(), LabError> {
    if stop.is_requested() { Err(LabError::Interrupted) } else { Ok(()) }
}

/// For tests: waits for a condition, and fails if it does not come.
#[cfg(test)]
pub(crate) fn soon(what: &str, mut done: impl FnMut() -> bool) {
    let look = || Ok(if done() { Look::Done(()) } else { Look::NotYet("no".into()) });
    wait_until(&Shutdown::manual(), what, Duration::from_secs(20), look).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_seen_last_and_heeds_a_signal() {
        let stop = Shutdown::manual();
        let never = || Ok(Look::<()>::NotYet("3 of 4".into()));
        let late = wait_until(&stop, "four points", Duration::ZERO, never).unwrap_err();
        assert_eq!(late.to_string(), "four points: not within 0 s (3 of 4)");
        stop.request();
        let interrupted = wait_until(&stop, "", Duration::MAX, never).unwrap_err();
        assert!(matches!(interrupted, LabError::Interrupted));
        assert!(matches!(let_pass(&stop, Duration::MAX), Err(LabError::Interrupted)));
    }
}
