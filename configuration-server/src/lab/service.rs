//! One service as a process of its own: started, asked, measured, killed.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use engine::service::{
    admin::{self, AdminError},
    progress::Step,
    shutdown::Shutdown,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{
    error::LabError,
    process::Spawner,
    wait::{Look, check, wait_until},
};

/// How long a service may take until it answers.
const START: Duration = Duration::from_secs(30);

/// How long a service may take to end after SIGTERM.
const END: Duration = Duration::from_secs(15);

/// Lines of a log that an error tells.
const TAIL: usize = 12;

/// A service of the lab. Shared freely: a test may kill it from another thread.
pub struct Service {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) config: PathBuf,
    pub(super) admin: PathBuf,
    pub(super) metrics: SocketAddr,
    pub(super) network: Option<PathBuf>,
    pub(super) log: PathBuf,
    pub(super) filter: String,
    pub(super) spawner: Arc<Spawner>,
    pub(super) stop: Shutdown,
    pub(super) child: Mutex<Option<Child>>,
}

impl Service {
    /// As in its configuration's file name: `agent-web`, `process-server`, `master-target`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it logs.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its binary, for its other commands.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Changes its configuration; it takes effect at its next start.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn configure(&self, change: impl FnOnce(&mut toml::Table)) -> Result<(), LabError> {
        let text = fs::read_to_string(&self.config).map_err(LabError::io("read", &self.config))?;
        let wrong = |error: String| LabError::unexpected(&self.name, format!("its configuration: {error}"));
        let mut table = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        change(&mut table);
        let text = toml::to_string(&table).map_err(|error| wrong(error.to_string()))?;
        fs::write(&self.config, text).map_err(LabError::io("write", &self.config))
    }

    /// Starts it, and waits until it answers. Nothing if it runs.
    ///
    /// # Errors
    /// If it ends at once, or does not answer in time.
    pub fn start(&self) -> Result<(), LabError> {
        self.spawn()?;
        wait_until(&self.stop, &format!("{} answers", self.name), START, || {
            match self.ask::<serde_json::Value>(json!({ "ask": "status" })) {
                Ok(_) => Ok(Look::Done(())),
                Err(LabError::Admin { source: AdminError::NotRunning { .. }, .. }) => {
                    self.check_alive()?;
                    Ok(Look::NotYet("nobody listens yet".into()))
                }
                Err(error) => Err(error),
            }
        })
    }

    fn spawn(&self) -> Result<(), LabError> {
        let mut child = self.child();
        if child.is_some() {
            return Ok(());
        }
        let log = File::options().append(true).create(true).open(&self.log);
        let log = log.map_err(LabError::io("open", &self.log))?;
        let mut command = match &self.network {
            None => Command::new(&self.program),
            // It becomes the service: it is the same process, and our mounts stay its.
            Some(network) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", network.display())).arg("--").arg(&self.program);
                command
            }
        };
        command.args(["--log", &self.filter, "--config"]).arg(&self.config).arg("serve");
        command
            .stdin(std::process::Stdio::null())
            .stderr(log.try_clone().map_err(LabError::io("open", &self.log))?);
        command.stdout(log);
        *child = Some(self.spawner.spawn(command).map_err(LabError::io("start", &self.program))?);
        Ok(())
    }

    /// `kill -9`. Nothing if it does not run.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn kill(&self) -> Result<(), LabError> {
        let Some(mut child) = self.child().take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map_err(LabError::io("kill", &self.name)).map(drop)
    }

    /// `kill -9`, then [`Self::start`].
    ///
    /// # Errors
    /// Theirs.
    pub fn restart(&self) -> Result<(), LabError> {
        self.kill()?;
        self.start()
    }

    /// SIGTERM, and waits until it is gone; the exit status is `None` if it did not run.
    ///
    /// # Errors
    /// If it does not end in time; then it is killed.
    pub fn stop(&self) -> Result<Option<ExitStatus>, LabError> {
        let Some(mut child) = self.child().take() else { return Ok(None) };
        // It may have ended just now.
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        // Not interruptible: stopping is what an interrupt wants.
        let ended = wait_until(&Shutdown::manual(), &format!("{} stops", self.name), END, || {
            let status = child.try_wait().map_err(LabError::io("wait for", &self.name))?;
            Ok(status.map_or(Look::NotYet("still running".into()), Look::Done))
        });
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.map(Some)
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process; `None` if it was not started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// That it was not stopped and has not ended by itself.
    ///
    /// # Errors
    /// [`LabError::Died`].
    pub fn check_alive(&self) -> Result<(), LabError> {
        let status = match self.child().as_mut().map(Child::try_wait) {
            Some(Ok(None)) => return Ok(()),
            Some(Ok(Some(status))) => match status.signal() {
                Some(signal) => format!("killed by signal {signal}"),
                None => status.to_string(),
            },
            Some(Err(error)) => error.to_string(),
            None => "it was stopped".into(),
        };
        let (service, log) = (self.name.clone(), self.log.clone());
        Err(LabError::Died { service, status, log, tail: self.log_tail(TAIL) })
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(lines).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Memory in use now and at most so far, in bytes: the resident set, with what is mapped and shared.
    ///
    /// # Errors
    /// If it does not run.
    pub fn memory(&self) -> Result<Memory, LabError> {
        let pid = self.pid().ok_or_else(|| LabError::unexpected(&self.name, "is not running"))?;
        let path = PathBuf::from(format!("/proc/{pid}/status"));
        let status = fs::read_to_string(&path).map_err(LabError::io("read", &path))?;
        Memory::parse(&status).ok_or_else(|| LabError::unexpected(&self.name, "tells no memory use"))
    }

    /// Asks it over its admin socket.
    ///
    /// # Errors
    /// [`LabError::Admin`], [`LabError::Interrupted`].
    pub fn ask<T: DeserializeOwned + Send + 'static>(&self, request: impl Serialize) -> Result<T, LabError> {
        self.ask_with(request, |_| {})
    }

    /// Asks it for something that takes long.
    ///
    /// # Errors
    /// Those of [`Self::ask`].
    pub fn ask_with<T: DeserializeOwned + Send + 'static>(
        &self,
        request: impl Serialize,
        mut on_progress: impl FnMut(Step),
    ) -> Result<T, LabError> {
        let admin_error = |source| LabError::Admin { service: self.name.clone(), source };
        let request = serde_json::to_value(request)
            .map_err(|error| LabError::unexpected(&self.name, format!("the request is no JSON: {error}")))?;
        // In a thread of its own: a signal must not wait for the answer. It ends with the service at the latest.
        let (news, inbox) = mpsc::channel();
        let path = self.admin.clone();
        let ask = move || {
            let progress = news.clone();
            let answer = admin::call::<T>(&path, &request, |step| drop(progress.send(News::Step(step))));
            // Nobody listens after an interrupt.
            let _ = news.send(News::Answer(answer));
        };
        thread::Builder::new().name("ask".into()).spawn(ask).map_err(LabError::io("ask", &self.name))?;
        loop {
            match inbox.recv_timeout(Duration::from_millis(20)) {
                Ok(News::Step(step)) => on_progress(step),
                Ok(News::Answer(answer)) => return answer.map_err(admin_error),
                Err(mpsc::RecvTimeoutError::Timeout) => check(&self.stop)?,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(LabError::unexpected(&self.name, "asking it panicked"));
                }
            }
        }
    }

    /// The sum of all series of a metric, for example `homeward_wire_bytes`; 0 if there are none.
    ///
    /// # Errors
    /// If its metrics cannot be read.
    pub fn metric(&self, name: &str) -> Result<f64, LabError> {
        Ok(sum_of(&self.metrics()?, name))
    }

    /// All its metrics, as Prometheus reads them.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn metrics(&self) -> Result<String, LabError> {
        let read = || {
            let mut stream = TcpStream::connect(self.metrics)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut response = String::new();
            stream.read_to_string(&mut response)?;
            Ok(response)
        };
        let response: String = read().map_err(LabError::io("read metrics of", &self.name))?;
        match response.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.into()),
            _ => Err(LabError::unexpected(&self.name, format!("no metrics but: {response}"))),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Service {
    /// In order if possible: an agent thaws what it has frozen.
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "killed");
        }
    }
}

enum News<T> {
    Step(Step),
    Answer(Result<T, AdminError>),
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident now.
    pub now: u64,
    /// Of that, what is neither a file nor shared.
    pub anonymous: u64,
    /// The most that was ever resident.
    pub peak: u64,
}

impl Memory {
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
        };
        Some(Self { now: field("VmRSS:")?, anonymous: field("RssAnon:")?, peak: field("VmHWM:")? })
    }
}

/// Series look like `name 1` or `name{label="x"} 1`.
fn sum_of(metrics: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let rest = if rest.starts_with('{') { rest.split_once("} ")?.1 } else { rest.strip_prefix(' ')? };
        rest.split(' ').next()?.parse::<f64>().ok()
    };
    metrics.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_add_up() {
        let text = "# TYPE homeward_points gauge\nhomeward_points{vm=\"a b\"} 3\nhomeward_points{vm=\"c\"} 4\n\
                    homeward_points_age 9\nhomeward_up 1\n";
        assert_eq!(sum_of(text, "homeward_points"), 7.0);
        assert_eq!(sum_of(text, "homeward_up"), 1.0);
        assert_eq!(sum_of(text, "homeward_nothing"), 0.0);
    }

    #[test]
    fn memory_is_read_as_the_kernel_tells_it() {
        let us = Memory::parse(&fs::read_to_string("/proc/self/status").unwrap()).unwrap();
        assert!(us.anonymous <= us.now && us.now <= us.peak && us.peak > 1 << 20, "{us:?}");
        assert_eq!(Memory::parse("VmRSS: 1 kB"), None);
    }
}
