//! Stopping: the first SIGINT or SIGTERM asks everything to end in order, the second ends the process at once.
//!
//! It only passes the wish on. Ending at once is always safe, since every service survives `kill -9`.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::code::Code;

/// The wish to stop, shared: clones see the same one. For async code [`Shutdown::requested`], for threads
/// [`Shutdown::is_requested`].
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<bool>);

impl Shutdown {
    /// One that listens to signals. Call it once, inside a tokio runtime, before anything is started.
    ///
    /// # Errors
    /// If the signal handlers cannot be installed.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::manual();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let signalled = shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => (),
                    _ = terminate.recv() => (),
                }
                if signalled.is_requested() {
                    std::process::exit(Code::Interrupted as i32);
                }
                tracing::info!("stopping; a second signal stops at once");
                signalled.request();
            }
        });
        Ok(shutdown)
    }

    /// One that only [`Shutdown::request`] triggers: for tests, and for services inside another process.
    #[must_use]
    pub fn manual() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Asks everything to stop.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is asked to stop. Cancel-safe.
    pub async fn requested(&self) {
        // Cannot fail: `self` holds a sender.
        let _ = self.0.subscribe().wait_for(|stop| *stop).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_and_every_late_comer_sees_the_request() {
        let shutdown = Shutdown::manual();
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.requested().await }
        });
        assert!(!shutdown.is_requested());
        shutdown.clone().request();
        waiting.await.unwrap();
        assert!(shutdown.is_requested());
        shutdown.requested().await;
    }

    #[tokio::test]
    async fn a_signal_is_a_request() {
        let shutdown = Shutdown::on_signals().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        shutdown.requested().await;
    }
}
